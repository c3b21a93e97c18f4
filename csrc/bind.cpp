// NumPy in and out. Shapes and types are checked by ops.py's callers and once more here; the GIL is released at work.
#include <algorithm>
#include <numeric>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "counter_rng.h"
#include "rollout.h"
#include "words.h"

namespace py = pybind11;

namespace {

using nca::Execution;
using nca::Params;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

using Shape = std::vector<py::ssize_t>;

template <class T>
const T* checked(const Array<T>& array, const char* name, const Shape& shape) {
  if (Shape(array.shape(), array.shape() + array.ndim()) != shape) {
    throw std::invalid_argument(std::string(name) + " has another shape than the other arguments imply");
  }
  return array.data();
}

py::tuple draw_rules(const Params& params, uint64_t seed, const Array<uint32_t>& candidates,
                     const Execution& execution) {
  const py::ssize_t count = candidates.size();
  Array<float> conv0({count, py::ssize_t{3}, py::ssize_t{3}, py::ssize_t{params.channels()}, py::ssize_t{4}});
  Array<float> conv1({count, py::ssize_t{4}, py::ssize_t{16}});
  Array<float> conv2({count, py::ssize_t{16}, py::ssize_t{params.num_states}});
  const uint32_t* in = candidates.data();
  float *out0 = conv0.mutable_data(), *out1 = conv1.mutable_data(), *out2 = conv2.mutable_data();
  {
    py::gil_scoped_release release;
    nca::draw_rules(params, seed, in, static_cast<size_t>(count), out0, out1, out2, execution);
  }
  return py::make_tuple(conv0, conv1, conv2);
}

Array<uint8_t> rollout(const Params& params, const Array<float>& conv0, const Array<float>& conv0_bias,
                       const Array<float>& conv1, const Array<float>& conv1_bias, const Array<float>& conv2,
                       const Array<float>& conv2_bias, const Array<uint8_t>& start, int num_steps, uint64_t seed,
                       const Execution& execution) {
  const py::ssize_t count = start.ndim() ? start.shape(0) : 0, states = params.num_states;
  const nca::Weights weights{checked(conv0, "conv0", {count, 3, 3, params.channels(), 4}),
                             checked(conv0_bias, "conv0_bias", {count, 4}),
                             checked(conv1, "conv1", {count, 4, 16}),
                             checked(conv1_bias, "conv1_bias", {count, 16}),
                             checked(conv2, "conv2", {count, 16, states}),
                             checked(conv2_bias, "conv2_bias", {count, states})};
  const uint8_t* in = checked(start, "states", {count, params.height, params.width});
  if (num_steps < 0) throw std::invalid_argument("num_steps is negative");
  for (py::ssize_t i = 0; i < start.size(); ++i) {
    if (in[i] >= params.num_states) throw std::invalid_argument("states holds a value that is not below num_states");
  }
  Array<uint8_t> result({count, py::ssize_t{num_steps} + 1, py::ssize_t{params.height}, py::ssize_t{params.width}});
  uint8_t* out = result.mutable_data();
  py::gil_scoped_release release;
  nca::rollout(params, weights, in, static_cast<size_t>(count), num_steps, seed, out, execution);
  return result;
}

Array<int32_t> score(const Params& params, uint64_t seed, uint32_t first, size_t count, const Execution& execution) {
  Array<int32_t> result(static_cast<py::ssize_t>(count));
  int32_t* out = result.mutable_data();
  py::gil_scoped_release release;
  nca::score(params, seed, first, count, out, execution);
  return result;
}

Array<uint8_t> accept(const Params& params, uint64_t seed, uint32_t first, size_t count, int64_t low, int64_t high,
                      const Execution& execution) {
  Array<uint8_t> result(static_cast<py::ssize_t>(count));
  uint8_t* out = result.mutable_data();
  py::gil_scoped_release release;
  nca::accept(params, seed, first, count, low, high, out, execution);
  return result;
}

template <class Token>
Array<Token> documents(const Params& params, uint64_t seed, const Array<uint32_t>& candidates,
                       const Array<uint32_t>& repeats, const Execution& execution) {
  const py::ssize_t count = candidates.size();
  const uint32_t* which = checked(candidates, "candidates", {count});
  const uint32_t* again = checked(repeats, "repeats", {count});
  Array<Token> result({count, py::ssize_t{params.document_tokens()}});
  Token* out = result.mutable_data();
  py::gil_scoped_release release;
  nca::documents(params, seed, which, again, static_cast<size_t>(count), out, execution);
  return result;
}

Array<int64_t> gzip_sizes(const Array<uint8_t>& buffers, const Execution& execution) {
  if (buffers.ndim() != 2) throw std::invalid_argument("buffers must be two-dimensional");
  const size_t count = static_cast<size_t>(buffers.shape(0)), length = static_cast<size_t>(buffers.shape(1));
  const uint8_t* in = buffers.data();
  Array<int64_t> result(buffers.shape(0));
  int64_t* out = result.mutable_data();
  py::gil_scoped_release release;
  nca::gzip_sizes(in, count, length, out, execution);
  return result;
}

int checked_length(const Array<uint16_t>& tokens) {
  if (tokens.ndim() != 2 || tokens.shape(1) < 1 || tokens.shape(1) > 1024) {
    throw std::invalid_argument("tokens must be two-dimensional, rows of 1 to 1,024");
  }
  return static_cast<int>(tokens.shape(1));
}

Array<int32_t> token_gzip_sizes(const Array<uint16_t>& tokens, const Execution& execution) {
  const int length = checked_length(tokens);
  const size_t count = static_cast<size_t>(tokens.shape(0));
  const uint16_t* in = tokens.data();
  Array<int32_t> result(tokens.shape(0));
  int32_t* out = result.mutable_data();
  py::gil_scoped_release release;
  nca::token_gzip_sizes(in, count, length, out, execution);
  return result;
}

Array<int8_t> accept_tokens(const Array<uint16_t>& tokens, int64_t low, int64_t high, const Execution& execution) {
  const int length = checked_length(tokens);
  const size_t count = static_cast<size_t>(tokens.shape(0));
  const uint16_t* in = tokens.data();
  Array<int8_t> result(tokens.shape(0));
  int8_t* out = result.mutable_data();
  py::gil_scoped_release release;
  nca::accept_tokens(in, count, length, low, high, out, execution);
  return result;
}

// How often each of 0 .. num_tokens - 1 stands in columns first .. last - 1.
template <class Token>
Array<int64_t> token_counts(const Array<Token>& tokens, int first, int last, int num_tokens) {
  if (tokens.ndim() != 2 || first < 0 || last < first || last > tokens.shape(1) || num_tokens < 1) {
    throw std::invalid_argument("tokens must be two-dimensional and have the columns");
  }
  Array<int64_t> result(num_tokens);
  std::fill_n(result.mutable_data(), num_tokens, 0);
  const py::ssize_t rows = tokens.shape(0), columns = tokens.shape(1);
  const Token* row = tokens.data();
  int64_t* counts = result.mutable_data();
  py::gil_scoped_release release;
  for (py::ssize_t i = 0; i < rows; ++i, row += columns) {
    for (int c = first; c < last; ++c) {
      const int64_t token = row[c];
      if (token < 0 || token >= num_tokens) throw std::invalid_argument("a token is not below num_tokens");
      ++counts[token];
    }
  }
  return result;
}

// Begin a batch of texts; returns those of its words that have no tokens yet.
py::list cut_words(nca::WordMemory& memory, const py::list& texts) {
  memory.begin();
  for (const py::handle text : texts) {
    PyObject* object = text.ptr();
    if (!PyUnicode_Check(object)) throw std::invalid_argument("texts must be str");
    const auto length = static_cast<size_t>(PyUnicode_GET_LENGTH(object));
    switch (PyUnicode_KIND(object)) {
      case PyUnicode_1BYTE_KIND: memory.add<uint8_t>(PyUnicode_1BYTE_DATA(object), length); break;
      case PyUnicode_2BYTE_KIND: memory.add<uint16_t>(PyUnicode_2BYTE_DATA(object), length); break;
      default: memory.add<uint32_t>(PyUnicode_4BYTE_DATA(object), length);
    }
  }
  py::list words;
  for (const std::u32string_view word : memory.unknown()) {
    words.append(py::reinterpret_steal<py::object>(
        PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, word.data(), static_cast<Py_ssize_t>(word.size()))));
  }
  return words;
}

// Tokens of the batch and the number of each text's, once those of its new words are given.
py::tuple word_tokens(nca::WordMemory& memory, const std::vector<std::vector<int32_t>>& of_new_words) {
  if (of_new_words.size() != memory.unknown().size()) throw std::invalid_argument("tokens of every new word are needed");
  for (const std::vector<int32_t>& tokens : of_new_words) memory.learn(tokens);
  const std::vector<size_t>& counts = memory.counts();
  Array<int64_t> lengths(static_cast<py::ssize_t>(counts.size()));
  std::copy(counts.begin(), counts.end(), lengths.mutable_data());
  Array<int32_t> tokens(static_cast<py::ssize_t>(std::accumulate(counts.begin(), counts.end(), size_t{0})));
  memory.write(tokens.mutable_data());
  return py::make_tuple(tokens, lengths);
}

nca::WordMemory word_memory(const py::bytes& kinds, bool gpt2, size_t most_words, size_t longest) {
  const std::string content = kinds;
  if (content.size() != 0x110000) throw std::invalid_argument("a kind for each code point is needed");
  return {{content.begin(), content.end()}, gpt2 ? nca::Cut::kGpt2 : nca::Cut::kSpacesLead, most_words, longest};
}

Array<uint32_t> philox(const Array<uint32_t>& counter, const Array<uint32_t>& key) {
  const uint32_t* c = checked(counter, "counter", {4});
  const uint32_t* k = checked(key, "key", {2});
  const nca::Bits bits = nca::philox({{c[0], c[1], c[2], c[3]}}, k[0], k[1]);
  return Array<uint32_t>(4, bits.word);
}

}  // namespace

PYBIND11_MODULE(_generator, module) {
  module.doc() = "The compiled generator of automata data; megatron_nca.ops is its only door.";
  py::class_<Params>(module, "Params")
      .def(py::init([](int num_states, int height, int width, int patch, int burn_in_steps, int steps_per_frame,
                       int num_frames, float temperature, float identity_bias, bool uniform_start, bool wrap_channels,
                       int score_frames, int score_token_bytes, bool score_delimiters, bool emit_scored) {
             return Params{num_states, height, width, patch, burn_in_steps, steps_per_frame, num_frames, temperature,
                           identity_bias, uniform_start ? nca::INITIAL_UNIFORM : nca::INITIAL_SHARED_CATEGORICAL,
                           wrap_channels, score_frames, score_token_bytes, score_delimiters, emit_scored};
           }),
           py::kw_only(), py::arg("num_states"), py::arg("height"), py::arg("width"), py::arg("patch"),
           py::arg("burn_in_steps"), py::arg("steps_per_frame"), py::arg("num_frames"), py::arg("temperature"),
           py::arg("identity_bias"), py::arg("uniform_start"), py::arg("wrap_channels"), py::arg("score_frames"),
           py::arg("score_token_bytes"), py::arg("score_delimiters"), py::arg("emit_scored"))
      .def_property_readonly("score_bytes", &Params::score_bytes)
      .def_property_readonly("document_tokens", &Params::document_tokens);
  py::class_<Execution>(module, "Execution")
      .def(py::init([](int threads, std::string kernel) { return Execution{threads, std::move(kernel)}; }),
           py::arg("threads") = 1, py::arg("kernel") = "");
  py::class_<nca::WordMemory>(module, "WordMemory")
      .def(py::init(&word_memory), py::arg("kinds"), py::kw_only(), py::arg("gpt2"), py::arg("most_words"),
           py::arg("longest"))
      .def("cut", &cut_words)
      .def("tokens", &word_tokens);
  module.def("kernel_names", &nca::kernel_names);
  module.def("philox", &philox);
  module.def("draw_rules", &draw_rules);
  module.def("rollout", &rollout);
  module.def("score", &score);
  module.def("accept", &accept);
  module.def("covers", &nca::covers);
  module.def("documents_uint16", &documents<uint16_t>);
  module.def("documents_int32", &documents<int32_t>);
  module.def("gzip_sizes", &gzip_sizes);
  module.def("token_gzip_sizes", &token_gzip_sizes);
  module.def("accept_tokens", &accept_tokens);
  module.def("token_counts_uint16", &token_counts<uint16_t>);
  module.def("token_counts_int32", &token_counts<int32_t>);
}
