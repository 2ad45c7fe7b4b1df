#include "csrc/sampling_engine.h"

#include <ATen/ATen.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <memory>
#include <optional>
#include <tuple>

#include "csrc/sampling_run.h"

namespace genfast::sampling {
namespace {

namespace py = pybind11;
using at::Tensor;

// source, start, step, count, dy, dx, top, bottom, left, right, fill, table
using ReadFields = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                              int64_t, int64_t, int64_t, double, bool>;
// height, width, span, after, row_scale, row_offset, column_scale, column_offset, before
using WhenFields =
    std::tuple<int64_t, int64_t, bool, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

template <typename... Words>
void require(bool condition, const Words&... words) {
  if (!condition) throw std::invalid_argument(c10::str(words...));
}

ReadSpec read_spec(const ReadFields& fields) {
  return std::make_from_tuple<ReadSpec>(fields);
}

std::vector<ReadSpec> read_specs(const std::vector<ReadFields>& fields) {
  std::vector<ReadSpec> specs;
  for (const ReadFields& read : fields) specs.push_back(read_spec(read));
  return specs;
}

// An op by its name in pointwise.POINTWISE, and how many operands it has.
cpu::PointwiseOp pointwise_op(const std::string& name, size_t operands) {
  const auto* const end = std::end(cpu::kPointwiseNames);
  const auto* const found = std::find_if(std::begin(cpu::kPointwiseNames), end,
                                         [&](const char* known) { return name == known; });
  require(found != end, "sampling program: expected a known operation, got op=", name);
  const auto op = static_cast<cpu::PointwiseOp>(found - std::begin(cpu::kPointwiseNames));
  const size_t expected = op < cpu::PointwiseOp::kAdd ? 1 : op < cpu::PointwiseOp::kWhere ? 2 : 3;
  require(operands == expected, "sampling program: expected ", expected, " operands of ", name,
          ", got ", operands);
  return op;
}

void check_like(const char* name, const Tensor& tensor, at::IntArrayRef sizes,
                at::ScalarType type) {
  require(tensor.device().is_cpu() && tensor.scalar_type() == type && tensor.is_contiguous() &&
              tensor.sizes() == sizes,
          "sampling run: expected contiguous ", name, " ", sizes, " of ", type, " on the CPU, got ",
          tensor.sizes(), " of ", tensor.scalar_type(), " on ", tensor.device());
}

template <typename scalar_t>
constexpr at::ScalarType kType = c10::CppTypeToScalarType<scalar_t>::value;

template <typename scalar_t>
std::vector<scalar_t> numbers(const Tensor& tensor) {
  const Tensor dense = tensor.detach().to(at::kCPU, kType<scalar_t>).contiguous();
  const scalar_t* from = dense.const_data_ptr<scalar_t>();
  return {from, from + dense.numel()};
}

// Collects a Program field by field, then packs it.
template <typename scalar_t>
class Builder {
 public:
  Builder(int64_t colours, int64_t encoded, int64_t height, int64_t width, int64_t span)
      : spec_{colours, encoded, height, width, span, {}, {}, {}, {}} {}

  void buffer(int64_t features, int64_t height, int64_t width, int64_t rows, int64_t columns) {
    spec_.buffers.push_back({features, height, width, rows, columns});
  }

  void table(int64_t features, int64_t rows, int64_t columns, const std::optional<Tensor>& data,
             int64_t condition) {
    TableSpec<scalar_t> made{features, rows, columns, {}, condition};
    if (data.has_value()) made.data = numbers<scalar_t>(*data);
    spec_.tables.push_back(std::move(made));
  }

  void gemm(int64_t out, int64_t first, int64_t count, const WhenFields& when,
            const std::vector<std::tuple<ReadFields, Tensor, int64_t, int64_t>>& taps,
            const std::optional<Tensor>& bias, const std::vector<ReadFields>& initial, int64_t up,
            int64_t down) {
    InstructionSpec<scalar_t>& made = add(Kind::kGemm, out, first, count, when);
    for (const auto& [read, weight, phase_row, phase_column] : taps) {
      made.taps.push_back({read_spec(read), numbers<scalar_t>(weight), phase_row, phase_column});
    }
    if (bias.has_value()) made.bias = numbers<scalar_t>(*bias);
    made.initial = read_specs(initial);
    made.up = up;
    made.down = down;
  }

  void pointwise(int64_t out, int64_t first, int64_t count, const WhenFields& when,
                 const std::vector<ReadFields>& reads, const std::vector<double>& constants,
                 const std::vector<std::tuple<std::string, std::vector<int64_t>>>& steps) {
    InstructionSpec<scalar_t>& made = add(Kind::kPointwise, out, first, count, when);
    made.reads = read_specs(reads);
    made.constants = constants;
    for (const auto& [op, args] : steps)
      made.steps.push_back({pointwise_op(op, args.size()), args});
  }

  void reduce(int64_t out, int64_t first, const WhenFields& when,
              const std::vector<ReadFields>& reads, const std::string& op, int64_t outer,
              int64_t size, int64_t inner) {
    require(op == "sum" || op == "max", "sampling program: expected sum or max, got op=", op);
    InstructionSpec<scalar_t>& made = add(Kind::kReduce, out, first, outer * inner, when);
    made.reads = read_specs(reads);
    made.maximum = op == "max";
    made.outer = outer;
    made.size = size;
    made.inner = inner;
  }

  void lookup(int64_t out, int64_t first, const WhenFields& when, const ReadFields& read,
              const Tensor& weight) {
    require(weight.dim() == 2, "sampling program: expected a weight [K, D], got shape ",
            weight.sizes());
    InstructionSpec<scalar_t>& made = add(Kind::kLookup, out, first, weight.size(1), when);
    made.reads = {read_spec(read)};
    made.weight = numbers<scalar_t>(weight);
    made.levels = weight.size(0);
  }

  void attend(int64_t out, int64_t first, const WhenFields& when,
              const std::vector<ReadFields>& queries, const std::vector<ReadFields>& keys,
              const std::vector<ReadFields>& values, const ReadFields& bias, int64_t heads,
              int64_t height, int64_t width, double scale) {
    int64_t count = 0;
    for (const ReadSpec& read : read_specs(values)) count += read.count;
    InstructionSpec<scalar_t>& made = add(Kind::kAttend, out, first, count, when);
    made.reads = read_specs(queries);
    made.keys = read_specs(keys);
    made.values = read_specs(values);
    made.score_bias = read_spec(bias);
    made.heads = heads;
    made.seen_height = height;
    made.seen_width = width;
    made.scale = scale;
  }

  void draw(int64_t first, int64_t count, const std::vector<ReadFields>& reads) {
    spec_.draws.push_back({first, count, read_specs(reads)});
  }

  std::shared_ptr<Plan<scalar_t>> finish() const { return std::make_shared<Plan<scalar_t>>(spec_); }

 private:
  InstructionSpec<scalar_t>& add(Kind kind, int64_t out, int64_t first, int64_t count,
                                 const WhenFields& when) {
    InstructionSpec<scalar_t> made{};
    made.kind = kind;
    made.out = out;
    made.first = first;
    made.count = count;
    made.when = std::make_from_tuple<WhenSpec>(when);
    spec_.instructions.push_back(std::move(made));
    return spec_.instructions.back();
  }

  ProgramSpec<scalar_t> spec_;
};

template <typename scalar_t>
std::shared_ptr<Run<scalar_t>> begin(const std::shared_ptr<Plan<scalar_t>>& plan, int64_t n,
                                     int threads, const std::vector<Tensor>& conditions) {
  require(n >= 1 && n < (int64_t{1} << 31), "sampling run: expected n >= 1, got n=", n);
  require(threads >= 1, "sampling run: expected threads >= 1, got threads=", threads);
  std::vector<Condition<scalar_t>> given;
  for (const Tensor& condition : conditions) {
    require(condition.dim() == 4 && condition.numel() > 0 &&
                (condition.size(0) == 1 || condition.size(0) == n),
            "sampling run: expected conditions [", n, " or 1, rows, columns, features], got ",
            condition.sizes());
    check_like("condition", condition, condition.sizes(), kType<scalar_t>);
    given.push_back({condition.const_data_ptr<scalar_t>(), condition.size(0), condition.size(1),
                     condition.size(2)});
  }
  for (const Grid<scalar_t>& grid : plan->grids) {
    if (grid.condition < 0) continue;
    const int64_t number = grid.condition;
    require(number < static_cast<int64_t>(conditions.size()), "sampling run: expected ", number + 1,
            " conditions, got ", conditions.size());
    const Tensor& condition = conditions[static_cast<size_t>(number)];
    require(condition.size(3) == grid.features, "sampling run: expected condition ", number, " of ",
            grid.features, " features, got ", condition.sizes());
  }
  py::gil_scoped_release without_gil;
  return std::make_shared<Run<scalar_t>>(plan, n, threads, given);
}

template <typename scalar_t>
Tensor parameters(Run<scalar_t>& run, int threads) {
  const auto position = run.position();
  const size_t draw = position.done ? 0 : static_cast<size_t>(position.draw);
  Tensor out = at::empty({run.n(), run.plan().draws[draw].parameters}, kType<scalar_t>);
  scalar_t* to = out.mutable_data_ptr<scalar_t>();
  py::gil_scoped_release without_gil;
  run.parameters(to, threads);
  return out;
}

template <typename scalar_t>
void supply(Run<scalar_t>& run, const Tensor& encoded) {
  const auto position = run.position();
  const size_t draw = position.done ? 0 : static_cast<size_t>(position.draw);
  check_like("symbols", encoded, {run.n(), run.plan().draws[draw].count * run.plan().encoded},
             kType<scalar_t>);
  run.supply(encoded.const_data_ptr<scalar_t>());
}

template <typename scalar_t>
std::vector<Tensor> forced(Run<scalar_t>& run, const Tensor& x, int threads) {
  const Plan<scalar_t>& plan = run.plan();
  check_like("x", x, {run.n(), plan.colours * plan.encoded, plan.height, plan.width},
             kType<scalar_t>);
  std::vector<Tensor> out;
  std::vector<scalar_t*> pointers;
  for (const Draw<scalar_t>& draw : plan.draws) {
    out.push_back(at::zeros({run.n(), plan.height, plan.width, draw.parameters}, kType<scalar_t>));
    pointers.push_back(out.back().template mutable_data_ptr<scalar_t>());
  }
  {
    py::gil_scoped_release without_gil;
    run.forced(x.const_data_ptr<scalar_t>(), pointers, threads);
  }
  for (Tensor& parameters : out) parameters = parameters.permute({0, 3, 1, 2});
  return out;
}

cpu::DrawRule categorical(int64_t levels) {
  require(levels >= 1 && levels < (int64_t{1} << 31),
          "sampling: expected levels >= 1, got levels=", levels);
  return {cpu::DrawKind::kCategorical, levels, 1, levels, 1};
}

cpu::DrawRule bernoulli() {
  return {cpu::DrawKind::kBernoulli, 2, 1, 1, 1};
}

cpu::DrawRule logistic_mixture(int64_t levels, int64_t mixtures, int64_t colours,
                               double lowest_log_scale) {
  require(levels >= 2 && levels < (int64_t{1} << 31),
          "sampling: expected levels >= 2, got levels=", levels);
  require(mixtures >= 1 && mixtures < (int64_t{1} << 31),
          "sampling: expected mixtures >= 1, got mixtures=", mixtures);
  require(colours == 1 || colours == 3, "sampling: expected colours 1 or 3, got colours=", colours);
  const int64_t parameters = (colours == 3 ? 10 : 3) * mixtures;
  cpu::DrawRule rule{cpu::DrawKind::kLogisticMixture, levels, colours, parameters, 1 + colours};
  rule.mixtures = mixtures;
  rule.lowest_log_scale = lowest_log_scale;
  return rule;
}

cpu::DrawRule gaussian(const std::string& scale) {
  constexpr const char* kNames[] = {"log_std", "std", "log_variance"};
  const auto* const found = std::find_if(std::begin(kNames), std::end(kNames),
                                         [&](const char* known) { return scale == known; });
  require(found != std::end(kNames), "sampling: expected a known scale, got scale=", scale);
  cpu::DrawRule rule{cpu::DrawKind::kGaussian, 0, 1, 2, 2};
  rule.scale = static_cast<cpu::GaussianScale>(found - std::begin(kNames));
  return rule;
}

// Symbols that are known must be levels: they say which row of `values` the model sees.
void check_known(const int32_t* symbols, const bool* known, int64_t count, int64_t levels) {
  for (int64_t i = 0; i < count; ++i) {
    require(!known[i] || (symbols[i] >= 0 && symbols[i] < levels),
            "sampling run: expected known symbols in 0 .. ", levels - 1, ", got ", symbols[i]);
  }
}

template <typename scalar_t>
void sample(Run<scalar_t>& run, const cpu::DrawRule& rule, const Tensor& noise,
            const std::optional<Tensor>& values, double temperature, double start,
            const std::optional<Tensor>& known_mask, const Tensor& symbols,
            const std::optional<Tensor>& log_probs, int64_t units, int threads) {
  const Plan<scalar_t>& plan = run.plan();
  const std::vector<int64_t> size{run.n(), plan.colours, plan.height, plan.width};
  const bool levels = rule.levels > 0;
  require(plan.colours % rule.count == 0, "sampling run: expected colours in groups of ",
          rule.count, ", got colours=", plan.colours);
  const int64_t channels = plan.colours / rule.count * rule.uniforms;
  check_like("noise", noise, {run.n(), channels, plan.height, plan.width}, at::kFloat);
  check_like("symbols", symbols, size, levels ? at::kInt : kType<scalar_t>);
  require(temperature > 0, "sampling run: expected temperature > 0, got temperature=", temperature);
  require(units >= 1, "sampling run: expected rows >= 1, got rows=", units);
  DrawJob<scalar_t> job{rule, temperature, start, noise.const_data_ptr<float>()};
  if (levels) {
    require(values.has_value(), "sampling run: expected values of the levels, got none");
    check_like("values", *values, {rule.levels, plan.encoded}, kType<scalar_t>);
    require(start >= 0 && start < static_cast<double>(rule.levels),
            "sampling run: expected a start symbol in 0 .. levels - 1, got start=", start);
    job.values = values->template const_data_ptr<scalar_t>();
    job.levels = symbols.mutable_data_ptr<int32_t>();
  } else {
    require(plan.encoded == 1, "sampling run: expected a model that sees numbers as they are, got ",
            plan.encoded, " features of each");
    job.numbers = symbols.mutable_data_ptr<scalar_t>();
  }
  if (known_mask.has_value()) {
    check_like("known_mask", *known_mask, size, at::kBool);
    job.known_mask = known_mask->const_data_ptr<bool>();
    if (levels) check_known(job.levels, job.known_mask, symbols.numel(), rule.levels);
  }
  if (log_probs.has_value()) {
    check_like("log_probs", *log_probs, {run.n()}, at::kDouble);
    job.log_probs = log_probs->mutable_data_ptr<double>();
  }
  py::gil_scoped_release without_gil;
  run.sample(job, units, threads);
}

template <typename scalar_t>
void bind(py::module_& m, const std::string& suffix) {
  using Made = Builder<scalar_t>;
  py::class_<Plan<scalar_t>, std::shared_ptr<Plan<scalar_t>>>(m, ("SamplingPlan" + suffix).c_str())
      .def_property_readonly("bytes", &Plan<scalar_t>::packed_bytes)
      .def("begin", &begin<scalar_t>);
  py::class_<Made>(m, ("SamplingBuilder" + suffix).c_str())
      .def(py::init<int64_t, int64_t, int64_t, int64_t, int64_t>())
      .def("buffer", &Made::buffer)
      .def("table", &Made::table)
      .def("gemm", &Made::gemm)
      .def("pointwise", &Made::pointwise)
      .def("reduce", &Made::reduce)
      .def("lookup", &Made::lookup)
      .def("attend", &Made::attend)
      .def("draw", &Made::draw)
      .def("finish", &Made::finish, py::call_guard<py::gil_scoped_release>());
  py::class_<Run<scalar_t>, std::shared_ptr<Run<scalar_t>>>(m, ("SamplingRun" + suffix).c_str())
      .def_property_readonly("bytes", &Run<scalar_t>::bytes)
      .def_property_readonly("team", &Run<scalar_t>::team)
      .def_property_readonly("has_parameters", &Run<scalar_t>::has_parameters)
      .def_property_readonly("position",
                             [](const Run<scalar_t>& run) {
                               const auto at = run.position();
                               return std::make_tuple(at.draw, at.row, at.column, at.done);
                             })
      .def("parameters", &parameters<scalar_t>)
      .def("supply", &supply<scalar_t>)
      .def("forced", &forced<scalar_t>)
      .def("sample", &sample<scalar_t>);
}

}  // namespace

void bind_engine(py::module_& m) {
  static const auto* const numerics_error =
      new py::object(py::module_::import("genfast.errors").attr("NumericsError"));
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const NumericsError& error) {
      PyErr_SetString(numerics_error->ptr(), error.what());
    }
  });
  m.def(
      "share_sampling", &share_everything,
      "Share a sampling run's work however little it is (for tests). Returns the setting before.");
  py::class_<cpu::DrawRule>(m, "SamplingDrawRule")
      .def_static("categorical", &categorical)
      .def_static("bernoulli", &bernoulli)
      .def_static("logistic_mixture", &logistic_mixture)
      .def_static("gaussian", &gaussian);
  bind<float>(m, "Float");
  bind<double>(m, "Double");
}

}  // namespace genfast::sampling
