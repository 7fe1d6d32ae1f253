// An n-gram language model as an automaton: read from ARPA, written to and mapped from a flat file.
#pragma once

#include <nanobind/nanobind.h>

namespace w2v {

inline void bind_ngram(nanobind::module_ &) {}

}  // namespace w2v
