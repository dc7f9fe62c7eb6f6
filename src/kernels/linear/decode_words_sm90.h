// What decoding packed weights needs of PTX: words from shared memory, by 32-bit addresses, and
// their bytes.
#pragma once
#include <cstdint>

namespace lathe {

// Byte i of the result is byte `nibble i of selector` of the eight bytes high:low. Bits from 16 on
// do not count; the top bit of a nibble must be 0. (__byte_perm would mask the selector once more.)
__device__ __forceinline__ uint32_t select_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(selector));
  return bytes;
}

__device__ __forceinline__ uint32_t load_shared_32(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address));
  return value;
}
__device__ __forceinline__ uint2 load_shared_64(uint32_t address) {
  uint2 value;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "r"(address));
  return value;
}
__device__ __forceinline__ uint4 load_shared_128(uint32_t address) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address));
  return value;
}

}  // namespace lathe
