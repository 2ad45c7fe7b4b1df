// Whether a backward pass may write its result over a tensor that the forward pass saved for it.
#pragma once

#include <ATen/ATen.h>
#include <ATen/SavedTensorHooks.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>

namespace genfast {

constexpr const char* kSavedAlone = "saved_alone";

// In the forward pass: hooks of saved tensors (torch.autograd.graph.saved_tensors_hooks) may keep
// what they are given, and give back something else.
inline void note_hooks(torch::autograd::AutogradContext* ctx) {
  ctx->saved_data[kSavedAlone] = !at::SavedTensorDefaultHooks::get_hooks(true).has_value();
}

// In the backward pass: nobody else holds the tensor, this node will not run again, and nothing
// traces or batches the pass, for which `others` take part too. The tensor is one that the forward
// pass made; the graph and the caller hold it.
inline bool may_overwrite(torch::autograd::AutogradContext* ctx, const at::Tensor& saved,
                          at::TensorList others) {
  return ctx->saved_data[kSavedAlone].toBool() && saved.use_count() <= 2 &&
         !at::GradMode::is_enabled() && !torch::autograd::get_current_graph_task_keep_graph() &&
         !at::isTensorSubclassLike(saved) && !at::areAnyTensorSubclassLike(others) &&
         saved.storage().use_count() == 1;
}

}  // namespace genfast
