// A few float32 rows times a matrix in 8 or 16 bits, for XLA's CPU backend.
//
// Writing one token after the other waits for the memory: every weight is read once per token. Inside XLA's own product
// a narrow matrix is read at 10-13 GB/s, because the processor's prefetching does not keep up; asked for 4 KiB ahead,
// the memory gives 20-22 GB/s (two cores of an Intel Xeon with AVX-512).
//
// Every output is summed by one thread, in an order that depends on the number of inputs alone: neither the number of
// threads nor that of the rows changes a bit. Names: B rows, K inputs, N outputs.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16, SUMS = 16;  // floats of a vector; vectors of sums that the registers hold
#else
constexpr int LANES = 8, SUMS = 8;
#endif
constexpr int64_t STEP = 64;         // weights between two rounds of prefetching
constexpr int64_t AHEAD = 4096;      // bytes
constexpr int64_t LINE = 64;         // bytes of the cache
constexpr int64_t LEAST = 64 << 10;  // bytes of weights for one thread at a time

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef int16_t Shorts __attribute__((vector_size(2 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));

template <typename Vector, typename T>
inline Vector load(const T* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

inline Floats widened(const float* values) { return load<Floats>(values); }

inline Floats widened(const int8_t* values) {
  int32_t ints[LANES];
  for (int i = 0; i < LANES; ++i) ints[i] = values[i];
  return __builtin_convertvector(load<Ints>(ints), Floats);
}

// bfloat16 is the upper half of a float32.
inline Floats widened(const uint16_t* values) {
  const Words words = __builtin_convertvector(load<Halves>(values), Words) << 16;
  return load<Floats>(&words);
}

// The last few values of a row, with zeros behind them.
template <typename T>
inline Floats widened(const T* values, int64_t count) {
  T padded[LANES] = {};
  std::memcpy(padded, values, count * sizeof(T));
  return widened(padded);
}

inline float total(Floats sums) {
  float parts[LANES];
  std::memcpy(parts, &sums, sizeof parts);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
  return parts[0];
}

template <typename T>
struct Product {
  const float* x_BK;
  const T* weight_NK;
  const float* scale_N;  // or null
  float* y_BN;
  int64_t B, K, N;

  // The outputs begin ... end - 1 of all rows.
  void run(int64_t begin, int64_t end) const {
    int64_t b = 0;
    for (; b + 8 <= B; b += 8) outputs<8>(b, begin, end);
    if (B - b >= 4) outputs<4>(b, begin, end), b += 4;
    if (B - b >= 2) outputs<2>(b, begin, end), b += 2;
    if (B - b >= 1) outputs<1>(b, begin, end);
  }

  template <int ROWS>
  void outputs(int64_t b, int64_t begin, int64_t end) const {
    constexpr int OUTS = std::min(4, SUMS / ROWS);
    for (; begin + OUTS <= end; begin += OUTS) block<ROWS, OUTS>(b, begin);
    for (; begin < end; ++begin) block<ROWS, 1>(b, begin);
  }

  // Each of the matrix rows is a stream of its own, which goes on OUTS rows below.
  template <int ROWS, int OUTS>
  void block(int64_t b, int64_t n) const {
    const float* x = x_BK + b * K;
    const T* row = weight_NK + n * K;
    const int64_t row_bytes = K * sizeof(T);
    Floats sums[OUTS][ROWS] = {};
    int64_t k = 0;
    for (; k + STEP <= K; k += STEP) {
      const int64_t ahead = k * sizeof(T) + AHEAD, below = ahead / row_bytes;
      const char* next = reinterpret_cast<const char*>(row) + ahead + below * (OUTS - 1) * row_bytes;
      for (int o = 0; o < OUTS; ++o)
        for (int64_t at = 0; at < STEP * int64_t(sizeof(T)); at += LINE) __builtin_prefetch(next + o * row_bytes + at);
      for (int64_t at = k; at < k + STEP; at += LANES) {
        Floats w[OUTS];
        for (int o = 0; o < OUTS; ++o) w[o] = widened(row + o * K + at);
        for (int i = 0; i < ROWS; ++i) {
          const Floats values = widened(x + i * K + at);
          for (int o = 0; o < OUTS; ++o) sums[o][i] += values * w[o];
        }
      }
    }
    for (; k < K; k += LANES) {
      const int64_t count = std::min<int64_t>(LANES, K - k);
      for (int o = 0; o < OUTS; ++o)
        for (int i = 0; i < ROWS; ++i)
          sums[o][i] += widened(x + i * K + k, count) * widened(row + o * K + k, count);
    }
    for (int o = 0; o < OUTS; ++o)
      for (int i = 0; i < ROWS; ++i)
        y_BN[(b + i) * N + n + o] = total(sums[o][i]) * (scale_N == nullptr ? 1.0f : scale_N[n + o]);
  }
};

// Parts 0 ... count - 1 of a piece of work. This thread takes part and waits only for parts that others have begun, so
// a pool whose threads are all busy, or wait here themselves, holds nobody up.
template <typename Part>
void in_parts(ffi::ThreadPool& pool, int64_t count, const Part& part) {
  struct Progress {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable all;
    int64_t done = 0;
  };
  auto progress = std::make_shared<Progress>();
  auto take = [progress, count, &part] {  // `part` lives until the last one that was begun is done
    int64_t mine = 0;
    for (int64_t i; (i = progress->next.fetch_add(1)) < count; ++mine) part(i);
    if (mine == 0) return;
    const std::lock_guard<std::mutex> lock(progress->mutex);
    progress->done += mine;
    if (progress->done == count) progress->all.notify_one();
  };
  for (int64_t other = std::min(pool.num_threads(), count) - 1; other > 0; --other) pool.Schedule([take] { take(); });
  take();
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->all.wait(lock, [&] { return progress->done == count; });
}

// Items 0 ... count - 1 of so many bytes each, in parts of which each thread has a few.
template <typename Range>
void in_ranges(ffi::ThreadPool& pool, int64_t count, int64_t bytes, const Range& range) {
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const int64_t least = (LEAST + bytes - 1) / std::max<int64_t>(1, bytes);
  const int64_t size = std::max<int64_t>({1, least, (count + 4 * threads - 1) / (4 * threads)});
  in_parts(pool, (count + size - 1) / size, [&](int64_t i) { range(i * size, std::min(count, (i + 1) * size)); });
}

template <typename T>
ffi::Error multiply(ffi::ThreadPool& pool, const ffi::Buffer<ffi::F32>& x, const T* weight, const float* scale,
                    ffi::Span<const int64_t> shape, ffi::Result<ffi::Buffer<ffi::F32>>& y) {
  const int64_t N = shape[0], K = shape[1];
  const Product<T> product{x.typed_data(), weight, scale, y->typed_data(), x.dimensions()[0], K, N};
  in_ranges(pool, N, K * sizeof(T), [&](int64_t begin, int64_t end) { product.run(begin, end); });
  return ffi::Error::Success();
}

ffi::Error int8_rows(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::S8> weight,
                     ffi::Buffer<ffi::F32> scale, ffi::Result<ffi::Buffer<ffi::F32>> y) {
  return multiply(pool, x, weight.typed_data(), scale.typed_data(), weight.dimensions(), y);
}

ffi::Error bfloat16_rows(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::BF16> weight,
                         ffi::Result<ffi::Buffer<ffi::F32>> y) {
  const auto* values = reinterpret_cast<const uint16_t*>(weight.typed_data());
  return multiply(pool, x, values, nullptr, weight.dimensions(), y);
}

template <typename T>
void widen(const T* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const Floats values = widened(from + i);
    std::memcpy(to + i, &values, sizeof values);
  }
  if (i < count) {
    const Floats values = widened(from + i, count - i);
    std::memcpy(to + i, &values, (count - i) * sizeof(float));
  }
}

// The matrix rows from `first` on, as many as the result has, in float32.
template <typename T>
ffi::Error widen_from(ffi::ThreadPool& pool, const T* matrix, ffi::Span<const int64_t> shape, int64_t first,
                      ffi::Result<ffi::Buffer<ffi::F32>>& wide) {
  const T* from = matrix + first * shape[1];
  float* to = wide->typed_data();
  in_ranges(pool, wide->element_count(), sizeof(T),
            [&](int64_t begin, int64_t end) { widen(from + begin, to + begin, end - begin); });
  return ffi::Error::Success();
}

ffi::Error widen_int8(ffi::ThreadPool pool, ffi::Buffer<ffi::S8> matrix, ffi::BufferR0<ffi::S32> first,
                      ffi::AnyBuffer /* what comes before */, ffi::Result<ffi::Buffer<ffi::F32>> wide) {
  return widen_from(pool, matrix.typed_data(), matrix.dimensions(), *first.typed_data(), wide);
}

ffi::Error widen_bfloat16(ffi::ThreadPool pool, ffi::Buffer<ffi::BF16> matrix, ffi::BufferR0<ffi::S32> first,
                          ffi::AnyBuffer /* what comes before */, ffi::Result<ffi::Buffer<ffi::F32>> wide) {
  const auto* values = reinterpret_cast<const uint16_t*>(matrix.typed_data());
  return widen_from(pool, values, matrix.dimensions(), *first.typed_data(), wide);
}

// Memory that something else will fill, wanted only once `x` is there.
ffi::Error room(ffi::AnyBuffer /* x */, ffi::Result<ffi::AnyBuffer>) { return ffi::Error::Success(); }

// Some rows of a matrix in float32.
ffi::Error take_bfloat16(ffi::Buffer<ffi::BF16> matrix, ffi::Buffer<ffi::S32> rows,
                         ffi::Result<ffi::Buffer<ffi::F32>> wide) {
  const auto* from = reinterpret_cast<const uint16_t*>(matrix.typed_data());
  const int64_t N = matrix.dimensions()[0], D = matrix.dimensions()[1];
  for (int64_t i = 0; i < int64_t(rows.element_count()); ++i)
    widen(from + std::clamp<int64_t>(rows.typed_data()[i], 0, N - 1) * D, wide->typed_data() + i * D, D);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(llamalab_int8_rows, int8_rows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(llamalab_bfloat16_rows, bfloat16_rows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(llamalab_widen_int8, widen_int8,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::BufferR0<ffi::S32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(llamalab_widen_bfloat16, widen_bfloat16,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::BufferR0<ffi::S32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    llamalab_take_bfloat16, take_bfloat16,
    ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::BF16>>().Arg<ffi::Buffer<ffi::S32>>().Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(llamalab_room, room, ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());
