// The kernels of the scale search, by name; what cuda_scale_search.cpp puts together. All pointers
// are to device memory; everything only enqueues work.
#pragma once
#include <cstdint>

#include "compress/cuda_scale_search.h"

namespace lathe {

// amax[row, group]: largest magnitude; *not_finite = some index of a group that holds a NaN or an
// infinity (unchanged when there is none).
void cuda_group_amax(const CudaQuantizedMatrix& matrix, const float* w, float* amax,
                     int64_t* not_finite, CudaStream stream);

// Whether cuda_store_absmax_scales() knows the rule: all whose byte follows from the largest
// magnitude alone.
bool follows_from_amax(MxScaleRule rule);

// What choose_absmax_scales() stores, from amax and the matrix's global scale and grid.
void cuda_store_absmax_scales(CudaQuantizedMatrix& matrix, const float* amax, MxScaleRule rule,
                              CudaStream stream);

// Chooses and stores the scale of every group (kPaperGrid or kExhaustive); group_errors[row,
// group]: what is left; row_errors: its sums by row.
void cuda_search_scales(const CudaScaleProblem& problem, const ScaleSearchOptions& options,
                        const float* amax, double* group_errors, double* row_errors,
                        CudaStream stream);

// Per row: sum h x y and sum h y^2 with y = element * stored scale, for the codes nearest to w.
void cuda_global_scale_sums(const CudaScaleProblem& problem, double* xy, double* yy,
                            CudaStream stream);

}  // namespace lathe
