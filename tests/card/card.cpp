// The card's scheduler, memory and textures: see cuda_runtime_api.h.
#include "cuda_runtime_api.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include <csetjmp>
#include <ucontext.h>

// ---- threads ----

namespace card {

dim3 thread, block, blocks, threads;

namespace {

constexpr size_t kStack = size_t(256) << 10;
constexpr unsigned kWarp = 32;
enum State { kReady, kAtBarrier, kAtShuffle, kReturned };

struct Fiber {
  ucontext_t first;  // where it begins; from then on it jumps, which asks nothing of the system
  jmp_buf at;
  bool begun;
  std::unique_ptr<char[]> stack;
  State state;
  int line;       // of the barrier that it waits at
  unsigned mask;  // of the shuffle that it waits at
  int turn;       // which of two sets of words its next shuffle uses
};
struct Warp {
  Lane words[2][kWarp];
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Warp> warps;
Fiber* current = nullptr;
jmp_buf host;
const std::function<void()>* body = nullptr;
cudaError_t last = cudaSuccess;
const char* why = "";
std::mt19937 dice;
bool shuffled = true;

dim3 place(unsigned n, dim3 of) { return {n % of.x, n / of.x % of.y, n / (of.x * of.y)}; }

std::vector<unsigned> order(unsigned count) {
  std::vector<unsigned> all(count);
  std::iota(all.begin(), all.end(), 0u);
  if (shuffled) std::shuffle(all.begin(), all.end(), dice);
  return all;
}

void leave(State state) {
  current->state = state;
  if (_setjmp(current->at) == 0) _longjmp(host, 1);
}

void enter() {
  for (;;) {
    (*body)();
    leave(kReturned);
  }
}

void go_on(Fiber& f) {
  current = &f;
  if (_setjmp(host) != 0) return;
  if (f.begun) _longjmp(f.at, 1);
  f.begun = true;
  setcontext(&f.first);
}

Fiber* made() {
  auto* f = new Fiber{};
  f->stack.reset(new char[kStack]);
  getcontext(&f->first);
  f->first.uc_stack.ss_sp = f->stack.get();
  f->first.uc_stack.ss_size = kStack;
  makecontext(&f->first, enter, 0);
  return f;
}

// All that wait go on if all are there; false where some can never come.
bool release_block(unsigned count) {
  int waiting = 0, line = -1;
  bool same = true;
  for (unsigned n = 0; n < count; ++n) {
    if (fibers[n]->state != kAtBarrier) continue;
    same = same && (waiting == 0 || fibers[n]->line == line);
    line = fibers[n]->line;
    ++waiting;
  }
  if (waiting != static_cast<int>(count) || !same) return false;
  for (unsigned n = 0; n < count; ++n) fibers[n]->state = kReady;
  return true;
}

bool release_warp(unsigned first, unsigned count) {
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const unsigned n = first + lane;
    if (n >= count || fibers[n]->state != kAtShuffle || fibers[n]->mask != 0xffffffffu) return false;
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) fibers[first + lane]->state = kReady;
  return true;
}

void run_block(unsigned count) {
  while (fibers.size() < count) fibers.emplace_back(made());
  warps.resize((count + kWarp - 1) / kWarp);
  for (unsigned n = 0; n < count; ++n) {
    fibers[n]->state = kReady;
    fibers[n]->turn = 0;
  }
  for (unsigned left = count; left > 0;) {
    bool moved = false;
    for (unsigned w : order(static_cast<unsigned>(warps.size()))) {  // each as far as it comes: no two side by side
      do {
        for (unsigned lane : order(std::min(kWarp, count - w * kWarp))) {
          Fiber& f = *fibers[w * kWarp + lane];
          if (f.state != kReady) continue;
          moved = true;
          thread = place(w * kWarp + lane, threads);
          go_on(f);
          left -= f.state == kReturned;
        }
      } while (release_warp(w * kWarp, count));
    }
    moved = release_block(count) || moved;
    if (!moved && left > 0) {
      fibers.clear();  // where they stand is lost
      return fault("some threads wait at a barrier or shuffle that others never reach");
    }
  }
}

}  // namespace

void fault(const char* what) {
  last = cudaErrorLaunchFailure;
  why = what;
}

void run(dim3 grid, dim3 of, const std::function<void()>& kernel) {
  const uint64_t each = uint64_t(of.x) * of.y * of.z;
  const bool sane = each > 0 && each <= 1024 && of.z <= 64 && grid.x > 0 && grid.x <= 2147483647u && grid.y > 0 &&
                    grid.y <= 65535 && grid.z > 0 && grid.z <= 65535;
  if (!sane) {
    last = cudaErrorInvalidConfiguration;
    return;
  }
  body = &kernel;
  blocks = grid;
  threads = of;
  for (unsigned n : order(grid.x * grid.y * grid.z)) {
    block = place(n, grid);
    run_block(static_cast<unsigned>(each));
  }
}

void barrier(int line) {
  current->line = line;
  leave(kAtBarrier);
}

Lane* exchange(unsigned mask, const void* bytes, size_t size) {
  const unsigned n = thread.x + threads.x * (thread.y + threads.y * thread.z);
  Lane* words = warps[n / kWarp].words[current->turn];
  current->turn ^= 1;  // who is quick writes the next words while others still read these
  current->mask = mask;
  std::memcpy(words[n % kWarp].bytes, bytes, size);
  leave(kAtShuffle);
  return words;
}

}  // namespace card

// ---- memory ----

namespace {

struct Copy {
  void* to;
  std::vector<char> bytes;
};
std::vector<Copy> copies;  // that the host has not waited for
int widest = 32768, highest = 32768;
double nudge = 0.0;

}  // namespace

cudaError_t cudaGetLastError() {
  const cudaError_t found = card::last;
  card::last = cudaSuccess;
  return found;
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "a launch beyond the card's limits, or of nothing";
    default: return card::why;
  }
}
cudaError_t cudaGetDevice(int* card) { return *card = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMaxTexture2DGatherWidth ? widest : highest;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  for (const Copy& copy : copies) std::memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
  copies.clear();
  return cudaGetLastError();
}
cudaError_t cudaDeviceSynchronize() { return cudaStreamSynchronize(nullptr); }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  const char* first = static_cast<const char*>(from);
  copies.push_back({to, {first, first + bytes}});
  return cudaSuccess;
}

// ---- textures ----

struct HostArray {
  size_t width, height;
  std::vector<int16_t> texels;
};

cudaChannelFormatDesc cudaCreateChannelDesc(int x, int y, int z, int w, cudaChannelFormatKind f) {
  return {x, y, z, w, f};
}
cudaError_t cudaMallocArray(cudaArray_t* made, const cudaChannelFormatDesc* f, size_t width, size_t height,
                            unsigned flags) {
  const bool known = f->x == 16 && !f->y && !f->z && !f->w && flags == cudaArrayTextureGather;
  if (!known || width > size_t(widest) || height > size_t(highest)) return cudaErrorInvalidValue;
  *made = new HostArray{width, height, std::vector<int16_t>(width * height, 12345)};
  return cudaSuccess;
}
cudaError_t cudaFreeArray(cudaArray_t array) { return delete array, cudaSuccess; }
cudaError_t cudaMemcpy2DToArrayAsync(cudaArray_t to, size_t x, size_t y, const void* from, size_t pitch, size_t width,
                                     size_t height, cudaMemcpyKind, cudaStream_t) {
  if (x || y || width > pitch || width / 2 > to->width || height > to->height) return cudaErrorInvalidValue;
  for (size_t row = 0; row < height; ++row)
    std::memcpy(&to->texels[row * to->width], static_cast<const char*>(from) + row * pitch, width);
  return cudaSuccess;
}
cudaError_t cudaCreateTextureObject(cudaTextureObject_t* made, const cudaResourceDesc* from, const cudaTextureDesc* how,
                                    const void*) {
  const bool known = how->addressMode[0] == cudaAddressModeBorder && how->addressMode[1] == cudaAddressModeBorder &&
                     how->filterMode == cudaFilterModePoint && how->readMode == cudaReadModeNormalizedFloat;
  if (!known || from->resType != cudaResourceTypeArray) return cudaErrorInvalidValue;
  *made = reinterpret_cast<cudaTextureObject_t>(from->res.array.array);
  return cudaSuccess;
}
cudaError_t cudaDestroyTextureObject(cudaTextureObject_t) { return cudaSuccess; }

// The four texels about a point, picked as a card does, with eight bits of a texel's fraction, and moved by `nudge`;
// in the order that CUDA's guide gives: (0, 1), (1, 1), (1, 0), (0, 0).
float4 card::gather(cudaTextureObject_t texture, float x, float y) {
  const HostArray& a = *reinterpret_cast<const HostArray*>(texture);
  const int i = static_cast<int>(std::floor(std::round((x - 0.5 + nudge) * 256.0) / 256.0));
  const int j = static_cast<int>(std::floor(std::round((y - 0.5 + nudge) * 256.0) / 256.0));
  const auto at = [&](int u, int v) {
    if (u < 0 || v < 0 || u >= int(a.width) || v >= int(a.height)) return 0.0f;
    return std::max(a.texels[size_t(v) * a.width + u] / 32767.0f, -1.0f);
  };
  return {at(i, j + 1), at(i + 1, j + 1), at(i + 1, j), at(i, j)};
}

// ---- what the tests set, and what torch's half for cards would answer ----

#define SHOWN __attribute__((visibility("default")))

extern "C" {

SHOWN void card_order(int seed) {  // 0: threads and blocks by number
  card::shuffled = seed != 0;
  card::dice.seed(static_cast<unsigned>(seed));
}
SHOWN void card_textures(int most_wide, int most_high, double moved) {
  widest = most_wide;
  highest = most_high;
  nudge = moved;
}
SHOWN const char* xreg_isa() { return "scalar"; }
SHOWN int xreg_set_isa(const char* name) { return !std::strcmp(name, "scalar"); }

int aoti_torch_get_current_cuda_stream(int, void** stream) { return *stream = nullptr, 0; }
int aoti_torch_create_device_guard(int, void** guard) { return *guard = nullptr, 0; }
int aoti_torch_delete_device_guard(void*) { return 0; }
}
