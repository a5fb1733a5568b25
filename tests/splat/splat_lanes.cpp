// The fast host functions of cuda/splat_lanes.cuh, over arrays; test_splat_lanes.py compares them with numpy's.
#include "splat_lanes.cuh"

using namespace xreg;

extern "C" void fast_exp2_minus(const float* x, float* y, int n) {
  for (int i = 0; i + kFastLanes <= n; i += kFastLanes) store(y + i, exp2_above(-load<FloatLanes>(x + i), -125.0f));
}
extern "C" void fast_inverse_sqrt(const float* x, float* y, int n) {
  for (int i = 0; i + kFastLanes <= n; i += kFastLanes) store(y + i, inverse_sqrt(load<FloatLanes>(x + i)));
}
extern "C" int fast_lanes() { return kFastLanes; }
extern "C" double fast_sum(const float* x) { return sum_of(load<FloatLanes>(x)); }
