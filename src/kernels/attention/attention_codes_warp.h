// What one warp does to attend to codes (kv_codes_cuda.h): 8 * kTiles queries, block by block of
// the cache, with a running softmax. Written once for the device and for the host, where a test
// runs it on 32 threads.
//
//   scores    s[16 tokens, 8 queries] = K q^T    a code, looked up, is the pair of neighbouring
//                                                summands that a register of the left operand holds
//   result    o[16 dims, 8 queries] = V^T p^T    two tokens' codes, looked up, are two such
//                                                registers once their halves are exchanged
//
// so a look-up serves two numbers and all queries of the KV head, and no number is converted. Sums
// over dims and tokens may take any order: k-step i of the scores takes, of lane quarter c, slots
// c * D / 8 + 2 i and the next one. Rows 0..7 of result i are dims 8 i + row, rows 8..15 those half
// a head further on. Scales belong to tokens: they multiply scores, and weights before the second
// product. Weights and queries are bf16, points of the grid are integers that bf16 holds exactly.
//
// Keys may be without an offset (KeyOffset, attention.h). Its scores are one more product,
//
//   offset    s[16 tokens, 8 queries] = [cos(i f) sin(i f)] [X Y]^T
//
// of a table for the positions in a block with the queries' C, S turned to the block's start: X = C
// cos + S sin, Y = S cos - C sin, in fp32. Both factors are f16, queries in units of 2^-14 of their
// largest C or S, so that a score is off by 2 * 2^-11 |X cos| for each pair (Y sin likewise) at
// most: a quarter of what rounding keys that have the offset in them to bf16 is off by.
//
// `Lane` is what the hardware does:
//   int id() const                                                 0..31
//   void load(uint32_t (&w)[N], Address at) const                  N aligned words
//   uint32_t points(uint32_t word, int byte) const                 the pair of this byte's code
//   void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)   m16n8k16
//   uint32_t transpose(uint32_t x)                                 8x8 matrix of 16-bit numbers
//   float exchange(float x, int mask)                              with lane id ^ mask
//   float from(float x, int lane)                                  that lane's x
//   bool any(bool x)
//   uint32_t pack(float low, float high) const                     to bf16
//   multiply_f16, pack_f16                                         the same of f16
//   uint32_t low_halves(uint32_t a, uint32_t b) const, high_halves  a's in the low half
//   float exp2(float x) const, tanh(float x) const
// Source of the fragments' layout: PTX ISA 9.0, "Matrix Fragments for mma.m16n8k16".
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/attention/kv_codes_cuda.h"

namespace lathe {

template <int D, int kTiles, bool kOffset = false>
struct CodesWarp {
  static_assert(D % 64 == 0 && D <= 256);
  static constexpr int kBlock = static_cast<int>(kBlockSize);
  static constexpr int kSteps = D / 16;    // of both products
  static constexpr int kWords = D / 32;    // codes of one token and a quarter of its slots
  static constexpr int kRowBytes = D / 2;  // codes of one token
  static constexpr int kOffsetTiles = kOffset ? kTiles : 1;
  static constexpr int kPairs = D / 8;                  // of an offset, that a lane has
  static constexpr int kInBlockWords = kBlock * D / 2;  // cos and sin of the positions in a block

  // What the softmax needs to know of a block.
  struct Softmax {
    float scale;          // of scores, to exponents of 2; before a softcap to its units
    float softcap;        // in exponents of 2; 0: none
    int block_begin;      // position of the first token
    bool all_seen;        // by all queries
    int window;           // 0: none
    int first;            // no query sees a position below: there are exact rows for those
    int last[kTiles][2];  // the positions of queries 2 c and 2 c + 1 of each tile, c = lane % 4
  };

  uint32_t q[kTiles][kSteps][2];
  float s[kTiles][2][4];
  float o[kTiles][kSteps][4];
  // Of queries 2 c and 2 c + 1.
  float largest[kTiles][2], total[kTiles][2];  // total: of this lane's tokens
  // Of an offset; without one, unused. C and S of query lane / 4 and pairs pair_of(lane, i), in
  // units; scores as s, in units; units of queries 2 c and 2 c + 1.
  float cosines[kOffsetTiles][kPairs], sines[kOffsetTiles][kPairs];
  float offset_s[kOffsetTiles][2][4];
  float units[kOffsetTiles][2];

  static LATHE_HOST_DEVICE constexpr int pair_of(int lane, int i) {
    return i / 4 * 16 + lane % 4 * 4 + i % 4;
  }
  // What word `at` of the table in shared memory is of: cos and sin in the order of fragments.
  struct InBlock {
    int token, pair;
  };
  static LATHE_HOST_DEVICE constexpr InBlock in_block(int at) {
    const int lane = at / 4 % 32;
    return {at / 128 % 4 * 8 + lane / 4, pair_of(lane, at / 512 * 4 + at % 4)};
  }

  // The query of row lane / 4 of each tile, from its two halves: this lane's D / 8 slots of each,
  // two bf16 numbers a word.
  LATHE_HOST_DEVICE void set_query(int tile, const uint32_t (&low)[D / 16],
                                   const uint32_t (&high)[D / 16]) {
    LATHE_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      q[tile][step][0] = (low[step] & 0xffffu) | high[step] << 16;
      q[tile][step][1] = low[step] >> 16 | (high[step] & 0xffff0000u);
    }
  }

  LATHE_HOST_DEVICE void clear() {
    LATHE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      LATHE_UNROLL
      for (int i = 0; i < 2; ++i) largest[tile][i] = -INFINITY, total[tile][i] = 0;
      LATHE_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        LATHE_UNROLL
        for (int i = 0; i < 4; ++i) o[tile][step][i] = 0;
      }
    }
  }

  // C and S of pairs pair_of(lane, i) of query lane / 4.
  template <typename Lane>
  LATHE_HOST_DEVICE void set_offset(Lane& lane, int tile, const float (&of_cos)[kPairs],
                                    const float (&of_sin)[kPairs]) {
    float most = 0;
    LATHE_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      const float c = of_cos[i] < 0 ? -of_cos[i] : of_cos[i];
      const float d = of_sin[i] < 0 ? -of_sin[i] : of_sin[i];
      most = c > most ? c : most;
      most = d > most ? d : most;
    }
    LATHE_UNROLL
    for (int mask = 1; mask < 4; mask *= 2) {
      const float other = lane.exchange(most, mask);
      most = other > most ? other : most;
    }
    // Turned they are sqrt(2) times as large at most: 2^14.5 of f16's 2^16.
    const float unit = most > 1e-30f ? most * 0x1p-14f : 1;
    const float inverse = 1 / unit;
    LATHE_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      cosines[tile][i] = of_cos[i] * inverse, sines[tile][i] = of_sin[i] * inverse;
    }
    LATHE_UNROLL
    for (int i = 0; i < 2; ++i) units[tile][i] = lane.from(unit, 4 * query_of(lane.id(), i));
  }

  // starts: cos, then sin, of the block's start, D / 2 floats each.
  template <typename Lane, typename Address>
  LATHE_HOST_DEVICE void score_offset(Lane& lane, Address starts, Address table) {
    LATHE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      LATHE_UNROLL
      for (int i = 0; i < 8; ++i) offset_s[tile][i / 4][i % 4] = 0;
    }
    LATHE_UNROLL
    for (int group = 0; group < D / 32; ++group) {  // of 16 pairs
      uint32_t cos[4], sin[4], turned[kTiles][4], a[4][4];
      const Address at = starts + pair_of(lane.id(), 4 * group) * 4;
      lane.load(cos, at);
      lane.load(sin, at + D / 2 * 4);
      LATHE_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        LATHE_UNROLL
        for (int e = 0; e < 4; ++e) {
          const float c = cosines[tile][4 * group + e], d = sines[tile][4 * group + e];
          const float x = as_float(cos[e]), y = as_float(sin[e]);
          turned[tile][e] = lane.pack_f16(c * x + d * y, d * x - c * y);
        }
      }
      LATHE_UNROLL
      for (int i = 0; i < 4; ++i) {  // tokens lane / 4 + 8 i
        lane.load(a[i], table + ((group * 4 + i) * 32 + lane.id()) * 16);
      }
      LATHE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int half = i / 2, e = i % 2 * 2;
        const uint32_t left[4] = {a[2 * half][e], a[2 * half + 1][e], a[2 * half][e + 1],
                                  a[2 * half + 1][e + 1]};
        LATHE_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          lane.multiply_f16(offset_s[tile][half], left, turned[tile][e], turned[tile][e + 1]);
        }
      }
    }
  }

  template <typename Lane, typename Address>
  LATHE_HOST_DEVICE void score(Lane& lane, Address keys) {
    LATHE_UNROLL
    for (int half = 0; half < 2; ++half) {  // 16 tokens
      LATHE_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        LATHE_UNROLL
        for (int i = 0; i < 4; ++i) s[tile][half][i] = 0;
      }
      // Tokens lane / 4 and lane / 4 + 8.
      uint32_t first[kWords], second[kWords];
      const Address at = keys + (half * 16 * kRowBytes + lane.id() * (D / 8));
      lane.load(first, at);
      lane.load(second, at + 8 * kRowBytes);
      LATHE_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        const int word = step / 2, byte = step % 2 * 2;
        const uint32_t a[4] = {lane.points(first[word], byte), lane.points(second[word], byte),
                               lane.points(first[word], byte + 1),
                               lane.points(second[word], byte + 1)};
        LATHE_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          lane.multiply(s[tile][half], a, q[tile][step][0], q[tile][step][1]);
        }
      }
    }
  }

  // Scores to weights 2^(score log2 e - largest), times the scales of values, in bf16 as the second
  // product takes them; earlier sums are scaled to the new largest score. key_scales, value_scales:
  // of tokens lane / 4 + 8 i, two bf16 numbers a word.
  template <typename Lane>
  LATHE_HOST_DEVICE void softmax(Lane& lane, const Softmax& args, const uint32_t (&key_scales)[2],
                                 const uint32_t (&value_scales)[2],
                                 uint32_t (&weights)[kTiles][4]) {
    float key_scale[4], value_scale[4];
    LATHE_UNROLL
    for (int i = 0; i < 4; ++i) {
      key_scale[i] = number(key_scales[i / 2], i % 2) * args.scale;
      value_scale[i] = number(value_scales[i / 2], i % 2);
    }
    LATHE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      LATHE_UNROLL
      for (int i = 0; i < 8; ++i) {  // token lane / 4 + 8 (i / 2), query i % 2
        float& score = s[tile][i / 4][i % 4];
        score *= key_scale[i / 2];
        if constexpr (kOffset) {
          score += offset_s[tile][i / 4][i % 4] * (units[tile][i % 2] * args.scale);
        }
      }
    }
    if (args.softcap > 0) cap(lane, args);
    if (!args.all_seen) hide_unseen(lane, args, value_scale);
    float shrink[kTiles][2];
    bool changed = false;
    LATHE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      LATHE_UNROLL
      for (int query = 0; query < 2; ++query) {
        float highest = s[tile][0][query];
        LATHE_UNROLL
        for (int i = 1; i < 4; ++i) highest = fmaxf(highest, s[tile][i / 2][i % 2 * 2 + query]);
        LATHE_UNROLL
        for (int mask = 4; mask < 32; mask *= 2) {
          highest = fmaxf(highest, lane.exchange(highest, mask));
        }
        const float previous = largest[tile][query];
        const float now = fmaxf(highest, previous);
        const float base = now == -INFINITY ? 0 : now;  // nothing seen so far: weights 0
        largest[tile][query] = now;
        shrink[tile][query] = lane.exp2(previous - base);
        changed = changed || now != previous;
        float sum = total[tile][query] * shrink[tile][query];
        LATHE_UNROLL
        for (int i = 0; i < 4; ++i) {
          float& score = s[tile][i / 2][i % 2 * 2 + query];
          const float weight = lane.exp2(score - base);
          sum += weight;
          score = weight * value_scale[i];
        }
        total[tile][query] = sum;
      }
      LATHE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float* pair = s[tile][i / 2] + i % 2 * 2;
        weights[tile][i] = lane.transpose(lane.pack(pair[0], pair[1]));
      }
    }
    if (!lane.any(changed)) return;
    LATHE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      LATHE_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        LATHE_UNROLL
        for (int i = 0; i < 4; ++i) o[tile][step][i] *= shrink[tile][i % 2];
      }
    }
  }

  template <typename Lane, typename Address>
  LATHE_HOST_DEVICE void add_values(Lane& lane, Address values,
                                    const uint32_t (&weights)[kTiles][4]) {
    LATHE_UNROLL
    for (int half = 0; half < 2; ++half) {  // 16 tokens: 2 c, 2 c + 1, and 8 more of each
      uint32_t first[kWords], second[kWords];
      const Address at = values + (half * 16 * kRowBytes + lane.id() * (D / 8));
      lane.load(first, at);
      lane.load(second, at + 8 * kRowBytes);
      LATHE_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        const int word = step / 2, byte = step % 2 * 2;
        const uint32_t p0 = lane.points(first[word], byte);
        const uint32_t p1 = lane.points(first[word], byte + 1);
        const uint32_t p8 = lane.points(second[word], byte);
        const uint32_t p9 = lane.points(second[word], byte + 1);
        const uint32_t a[4] = {lane.low_halves(p0, p1), lane.high_halves(p0, p1),
                               lane.low_halves(p8, p9), lane.high_halves(p8, p9)};
        LATHE_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          lane.multiply(o[tile][step], a, weights[tile][2 * half], weights[tile][2 * half + 1]);
        }
      }
    }
  }

  // keys, values: a head each, codes and scales. starts, table: as score_offset() wants them.
  template <typename Lane, typename Address>
  LATHE_HOST_DEVICE void attend_block(Lane& lane, const Softmax& args, Address keys, Address values,
                                      Address starts = {}, Address table = {}) {
    uint32_t key_scales[2], value_scales[2], weights[kTiles][4];
    const int scales = code_scale_offset(D, lane.id() / 4);
    lane.load(key_scales, keys + scales);
    lane.load(value_scales, values + scales);
    score(lane, keys);
    if constexpr (kOffset) score_offset(lane, starts, table);
    softmax(lane, args, key_scales, value_scales, weights);
    add_values(lane, values, weights);
  }

  // Scores of what a query does not see become -infinity. What none of this lane's queries sees may
  // have any scale, NaN too: its values count with 0.
  template <typename Lane>
  LATHE_HOST_DEVICE void hide_unseen(Lane& lane, const Softmax& args, float (&value_scale)[4]) {
    LATHE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int t = args.block_begin + lane.id() / 4 + 8 * i;
      bool is_seen = false;
      LATHE_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        LATHE_UNROLL
        for (int query = 0; query < 2; ++query) {
          const int last = args.last[tile][query];
          const bool seen =
              t <= last && t >= args.first && (args.window <= 0 || t > last - args.window);
          float& score = s[tile][i / 2][i % 2 * 2 + query];
          score = seen ? score : -INFINITY;
          is_seen = is_seen || seen;
        }
      }
      value_scale[i] = is_seen ? value_scale[i] : 0;
    }
  }

  template <typename Lane>
  LATHE_HOST_DEVICE void cap(Lane& lane, const Softmax& args) {
    LATHE_UNROLL
    for (int i = 0; i < 8 * kTiles; ++i) {
      float& score = s[i / 8][i / 4 % 2][i % 4];
      score = args.softcap * lane.tanh(score);
    }
  }

  // Dim of o[tile][step][i], and its query within the tile.
  static LATHE_HOST_DEVICE constexpr int dim_of(int lane, int step, int i) {
    return 8 * step + lane / 4 + i / 2 * (D / 2);
  }
  static LATHE_HOST_DEVICE constexpr int query_of(int lane, int i) { return lane % 4 * 2 + i % 2; }

 private:
  // The low or high bf16 of a word.
  static LATHE_HOST_DEVICE float number(uint32_t word, int which) {
    return as_float(which == 0 ? word << 16 : word & 0xffff0000u);
  }
  static LATHE_HOST_DEVICE float as_float(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    return std::bit_cast<float>(bits);
#endif
  }
};

}  // namespace lathe
