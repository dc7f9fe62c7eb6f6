// The numbers of the codebooks of quant/higgs.h, [num_points][dim]; written by
// scripts/make_higgs_grids.py.
#pragma once

namespace lathe {

extern const float kHiggsGridD1N4[4];
extern const float kHiggsGridD1N8[8];
extern const float kHiggsGridD1N16[16];
extern const float kHiggsGridD2N16[32];
extern const float kHiggsGridD2N64[128];
extern const float kHiggsGridD2N256[512];
extern const float kHiggsGridD4N256[1024];

}  // namespace lathe
