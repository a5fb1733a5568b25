// The fast host functions of cuda/splat_lanes.cuh, over arrays; test_splat_lanes.py compares them with numpy's.
#include "splat_lanes.cuh"

using namespace xreg;

extern "C" void fast_exp2(const float* x, float* y, int n) {
  for (int i = 0; i + 16 <= n; i += 16) store(y + i, exp2_of(load<Float16Lanes>(x + i)));
}
extern "C" void fast_inverse_sqrt(const float* x, float* y, int n) {
  for (int i = 0; i + 16 <= n; i += 16) store(y + i, inverse_sqrt(load<Float16Lanes>(x + i)));
}
extern "C" double fast_sum(const float* x) { return sum_of(load<Float16Lanes>(x)); }
