// A NaN or an infinity among a model's weights is damage, and one is enough to make every logit a
// NaN: it is refused where the tensor is loaded, since only there its name is known.
#pragma once
#include <string>

#include "tensor/tensor.h"

namespace lathe {

// Throws kCorruptData naming the element unless all are finite; other dtypes than F32, F16 and BF16
// have nothing to check. `what` begins the message: "FILE: tensor 'NAME'".
void check_finite(const Tensor& tensor, const std::string& what);

}  // namespace lathe
