// The pipeline for Python; Params and Execution are those of megatron_nca._generator, which is loaded first.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "device.h"
#include "pipeline.h"

namespace py = pybind11;

namespace {

using nca::Execution;
using nca::Params;
using nca::cuda::Found;
using nca::cuda::Search;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

Array<int32_t> score(const Params& params, uint64_t seed, uint32_t first, size_t count, const Execution& execution) {
  Array<int32_t> result(static_cast<py::ssize_t>(count));
  int32_t* out = result.mutable_data();
  py::gil_scoped_release release;
  nca::cuda::score(params, seed, first, count, out, execution);
  return result;
}

Array<uint8_t> accept(const Params& params, uint64_t seed, uint32_t first, size_t count, int64_t low, int64_t high,
                      const Execution& execution) {
  Array<uint8_t> result(static_cast<py::ssize_t>(count));
  uint8_t* out = result.mutable_data();
  py::gil_scoped_release release;
  nca::cuda::accept(params, seed, first, count, low, high, out, execution);
  return result;
}

template <class Token>
Array<Token> documents(const Params& params, uint64_t seed, const Array<uint32_t>& candidates,
                       const Array<uint32_t>& repeats, const Execution& execution) {
  if (candidates.ndim() != 1 || repeats.ndim() != 1 || candidates.size() != repeats.size()) {
    throw std::invalid_argument("candidates and repeats are not two lists of one length");
  }
  const py::ssize_t count = candidates.size();
  const uint32_t *which = candidates.data(), *again = repeats.data();
  Array<Token> result({count, py::ssize_t{params.document_tokens()}});
  Token* out = result.mutable_data();
  py::gil_scoped_release release;
  nca::cuda::documents(params, seed, which, again, static_cast<size_t>(count), out, execution);
  return result;
}

Array<int8_t> accept_tokens(const Array<uint16_t>& tokens, int64_t low, int64_t high, const Execution&) {
  if (tokens.ndim() != 2 || tokens.shape(1) < 1 || tokens.shape(1) > 1024) {
    throw std::invalid_argument("tokens must be two-dimensional, rows of 1 to 1,024");
  }
  const size_t count = static_cast<size_t>(tokens.shape(0));
  const int length = static_cast<int>(tokens.shape(1));
  const uint16_t* in = tokens.data();
  Array<int8_t> result(tokens.shape(0));
  int8_t* out = result.mutable_data();
  py::gil_scoped_release release;
  nca::cuda::accept_tokens(in, count, length, low, high, out);
  return result;
}

// The array keeps the pinned memory from being used again until nothing refers to it.
template <class Token>
Array<Token> view(const Found& found, py::ssize_t length) {
  const py::capsule owner(new std::shared_ptr<void>(found.tokens),
                          [](void* held) { delete static_cast<std::shared_ptr<void>*>(held); });
  return Array<Token>({static_cast<py::ssize_t>(found.candidates.size()), length},
                      static_cast<const Token*>(found.tokens.get()), owner);
}

class PythonSearch {
 public:
  PythonSearch(const Params& params, uint64_t seed, int64_t low, int64_t high, uint64_t wanted, bool wide,
               const Execution& execution)
      : search_(params, seed, low, high, wanted, wide, execution), length_(params.document_tokens()), wide_(wide) {}

  py::tuple next() {
    Found found;
    {
      py::gil_scoped_release release;
      found = search_.next();
    }
    const Array<uint32_t> numbers(static_cast<py::ssize_t>(found.candidates.size()), found.candidates.data());
    py::object tokens = wide_ ? py::object(view<int32_t>(found, length_)) : py::object(view<uint16_t>(found, length_));
    return py::make_tuple(found.examined, numbers, tokens);
  }

 private:
  Search search_;
  const py::ssize_t length_;
  const bool wide_;
};

}  // namespace

#if !defined(NCA_CUDA_MODULE)
#define NCA_CUDA_MODULE _generator_cuda
#endif

PYBIND11_MODULE(NCA_CUDA_MODULE, module) {
  module.doc() = "The generator on a GPU; megatron_nca.ops is its only door.";
  module.def("check_device", &nca::cuda::check_device);
  module.def("device_name", &nca::cuda::device_name);
  module.def("score", &score);
  module.def("accept", &accept);
  module.def("accept_tokens", &accept_tokens);
  module.def("documents_uint16", &documents<uint16_t>);
  module.def("documents_int32", &documents<int32_t>);
  py::class_<PythonSearch>(module, "Search")
      .def(py::init<const Params&, uint64_t, int64_t, int64_t, uint64_t, bool, const Execution&>())
      .def("next", &PythonSearch::next);
}
