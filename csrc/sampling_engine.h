// The sampling engine's classes in Python; genfast/sampling/run/native.py is their only user.
#pragma once

#include <pybind11/pybind11.h>

namespace genfast::sampling {

void bind_engine(pybind11::module_& m);

}  // namespace genfast::sampling
