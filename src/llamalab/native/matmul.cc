// A ggml device that multiplies matrices with many rows, for llama.cpp to use beside its CPU device.
//
// llama.cpp asks every device of the kind "accelerator" which operations it takes; this one takes products of float32
// rows with what lies in the CPU's memory: a quantised matrix as it stands in the file, or floats, weights and attention
// alike. The structs below are those of ggml's interface for loadable devices, version 2; ggml refuses a library that
// names another version.

#include <cstddef>
#include <cstdint>
#include <deque>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__) && defined(__F16C__)

#include "float_product.h"
#include "product.h"

namespace {

struct Tensor {
  int type;
  void* buffer;
  int64_t ne[4];
  size_t nb[4];
  int op;
  int32_t op_params[16];
  int32_t flags;
  Tensor* src[10];
  Tensor* view_src;
  size_t view_offs;
  void* data;
  char name[64];
  void* extra;
  char padding[8];
};

struct Graph {
  int size, n_nodes, n_leafs;
  Tensor** nodes;
};

struct Device;
struct Registry;
using BufferType = void*;
using Any = void (*)();

struct BackendInterface {
  const char* (*get_name)(struct Backend*);
  void (*free)(struct Backend*);
  Any transfers[5], synchronize, plans[4];
  int (*graph_compute)(struct Backend*, Graph*);
  Any events[2], graph_optimize;
};

struct Backend {
  const uint8_t* guid;
  BackendInterface interface;
  Device* device;
  void* context;
};

struct Properties {
  const char *name, *description;
  size_t memory_free, memory_total;
  int type;
  const char* device_id;
  struct {
    bool async, host_buffer, buffer_from_host_ptr, events, mmap_support;
  } caps;
};

struct DeviceInterface {
  const char* (*get_name)(Device*);
  const char* (*get_description)(Device*);
  void (*get_memory)(Device*, size_t*, size_t*);
  int (*get_type)(Device*);
  void (*get_props)(Device*, Properties*);
  Backend* (*init_backend)(Device*, const char*);
  BufferType (*get_buffer_type)(Device*);
  Any get_host_buffer_type, buffer_from_host_ptr;
  bool (*supports_op)(Device*, const Tensor*);
  bool (*supports_buft)(Device*, BufferType);
  Any offload_op, event_new, event_free, event_synchronize;
};

struct Device {
  DeviceInterface interface;
  Registry* registry;
  int64_t least_rows;  // ggml's struct has a pointer of our own here
};

struct Registry {
  int api_version;
  const char* (*get_name)(Registry*);
  size_t (*get_device_count)(Registry*);
  Device* (*get_device)(Registry*, size_t);
  void* (*get_proc_address)(Registry*, const char*);
  void* context;
};

constexpr int API_VERSION = 2, ACCELERATOR = 3, SUCCESS = 0, NO_MEMORY = -2, F32 = 0, COMPUTED = 16;

// What ggml itself says, see `llamalab_configure`.
struct {
  BufferType cpu_memory;
  bool (*is_host)(BufferType);
  int multiplication;
} ggml;

// Products of fewer rows are left to others, by a device that is handed out after it was said.
int64_t least_rows = 1;

struct Work {
  int threads = 1;
  product::Scratch scratch;
};

const char* name(...) { return "llamalab"; }

bool flat(const Tensor* tensor) { return tensor->ne[2] == 1 && tensor->ne[3] == 1; }

// Rows of float32, one behind the other.
bool plain(const Tensor* tensor) {
  return flat(tensor) && tensor->nb[0] == sizeof(float) && tensor->nb[1] == sizeof(float) * tensor->ne[0];
}

bool takes_quantised(const Tensor* w, const Tensor* x, const Tensor* y) {
  const product::Kernel kernel = product::kernel_of(w->type);
  return kernel.multiply && w->ne[0] % kernel.block == 0 && w->nb[1] == w->ne[0] / kernel.block * kernel.bytes && flat(w) &&
         plain(x) && plain(y);
}

bool takes_floats(const Tensor* w, const Tensor* x, const Tensor* y) {
  return product::float_kernel_of(w->type) && w->nb[0] == (w->type == F32 ? 4 : 2) && x->nb[0] == sizeof(float) &&
         y->nb[0] == sizeof(float) && w->ne[3] == 1 && x->ne[3] == 1 && x->ne[2] % w->ne[2] == 0;
}

bool takes(Device* device, const Tensor* op) {
  if (op->op != ggml.multiplication || op->ne[1] < device->least_rows) return false;
  const Tensor *w = op->src[0], *x = op->src[1];
  // The second parameter says that a matrix is of Hadamard's, for which ggml has a way of its own.
  if (x->type != F32 || op->type != F32 || op->op_params[1]) return false;
  return takes_quantised(w, x, op) || takes_floats(w, x, op);
}

void multiply_floats(const Tensor* w, const Tensor* x, const Tensor* y, int threads) {
  const product::FloatProduct whole{
      {static_cast<const char*>(w->data), w->nb[1], w->nb[2]},
      {static_cast<const char*>(x->data), x->nb[1], x->nb[2]},
      {static_cast<char*>(y->data), y->nb[1], y->nb[2]},
      w->ne[1],
      w->ne[0],
      x->ne[1],
      x->ne[2],
      x->ne[2] / w->ne[2],
  };
  product::float_kernel_of(w->type)(whole, threads);
}

int compute(Backend* backend, Graph* graph) try {
  Work& work = *static_cast<Work*>(backend->context);
  for (int i = 0; i < graph->n_nodes; i++) {
    const Tensor* y = graph->nodes[i];
    if (y->op != ggml.multiplication || !(y->flags & COMPUTED) || y->ne[1] == 0) continue;
    const Tensor *w = y->src[0], *x = y->src[1];
    if (const product::Kernel kernel = product::kernel_of(w->type); kernel.multiply)
      kernel.multiply(static_cast<const uint8_t*>(w->data), static_cast<const float*>(x->data),
                      static_cast<float*>(y->data), w->ne[1], w->ne[0], x->ne[1], work.threads, work.scratch);
    else
      multiply_floats(w, x, y, work.threads);
  }
  return SUCCESS;
} catch (const std::bad_alloc&) {
  return NO_MEMORY;
}

void free_backend(Backend* backend) {
  delete static_cast<Work*>(backend->context);
  delete backend;
}

Backend* init_backend(Device* device, const char*) {
  static const uint8_t guid[16] = {'l', 'l', 'a', 'm', 'a', 'l', 'a', 'b', ' ', 'm', 'a', 't', 'm', 'u', 'l', '1'};
  BackendInterface interface{};
  interface.get_name = [](Backend*) { return name(); };
  interface.free = free_backend;
  interface.graph_compute = compute;
  return new Backend{guid, interface, device, new Work};
}

void properties(Device*, Properties* found) {
  *found = {name(), "products of many rows", 0, 0, ACCELERATOR, nullptr, {false, false, false, false, true}};
}

Registry* registry();

// One for each number of rows that was ever asked for: contexts keep theirs.
Device* device() {
  static std::deque<Device> devices;
  for (Device& each : devices)
    if (each.least_rows == least_rows) return &each;
  DeviceInterface interface{};
  interface.get_name = [](Device*) { return name(); };
  interface.get_description = [](Device*) { return "products of many rows"; };
  interface.get_memory = [](Device*, size_t* free, size_t* total) { *free = *total = 0; };
  interface.get_type = [](Device*) { return ACCELERATOR; };
  interface.get_props = properties;
  interface.init_backend = init_backend;
  interface.get_buffer_type = [](Device*) { return ggml.cpu_memory; };
  interface.supports_op = takes;
  interface.supports_buft = [](Device*, BufferType type) { return ggml.is_host(type); };
  return &devices.emplace_back(Device{interface, registry(), least_rows});
}

void set_threads(Backend* backend, int threads) { static_cast<Work*>(backend->context)->threads = threads; }

Registry* registry() {
  static Registry only = {
      API_VERSION,
      [](Registry*) { return name(); },
      [](Registry*) -> size_t { return 1; },
      [](Registry*, size_t) { return device(); },
      [](Registry*, const char* what) {
        return std::strcmp(what, "ggml_backend_set_n_threads") ? nullptr : reinterpret_cast<void*>(set_threads);
      },
      nullptr,
  };
  return &only;
}

}  // namespace

extern "C" {

// Say what only the loaded ggml knows: where the CPU's tensors lie, and its number of the operation MUL_MAT.
void llamalab_configure(void* cpu_memory, bool (*is_host)(void*), int multiplication) {
  ggml = {cpu_memory, is_host, multiplication};
}

// The device that is loaded next takes products of so many rows and more.
void llamalab_take_from(int64_t rows) { least_rows = rows; }

// Bytes of a tensor, as this file has the struct.
size_t llamalab_tensor_bytes() { return sizeof(Tensor); }

// Whether weights of this type are multiplied here.
bool llamalab_takes(int type) { return product::kernel_of(type).multiply || product::float_kernel_of(type); }

// y (M, N) = x (M, K) times the transpose of w (N, K), which is of ggml's `type`; whether that can be done.
bool llamalab_matmul(int type, const uint8_t* w, const float* x, float* y, int64_t N, int64_t K, int64_t M, int threads) {
  const size_t bytes = type == F32 ? 4 : 2, row = K * sizeof(float);
  if (const product::MultiplyFloats multiply = product::float_kernel_of(type)) {
    multiply({{reinterpret_cast<const char*>(w), K * bytes, 0},
              {reinterpret_cast<const char*>(x), row, 0},
              {reinterpret_cast<char*>(y), N * sizeof(float), 0},
              N, K, M, 1, 1},
             threads);
    return true;
  }
  const product::Kernel kernel = product::kernel_of(type);
  if (!kernel.multiply || K % kernel.block) return false;
  product::Scratch scratch;
  kernel.multiply(w, x, y, N, K, M, threads, scratch);
  return true;
}

// ggml looks for this name in a library that it loads.
void* ggml_backend_init() { return registry(); }
}

#endif
