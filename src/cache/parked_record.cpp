#include "cache/parked_record.h"

#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/error.h"
#include "base/sha256.h"

namespace lathe {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr char kMagic[] = {'L', 'A', 'T', 'H', 'E', 'K', 'V', '1'};
constexpr std::size_t kDigestBytes = 32;
constexpr std::size_t kHeaderBytes = 80;
// Far above any sequence and any block; keeps products of two in 64 bits.
constexpr int64_t kMaxTokens = int64_t{1} << 31;
constexpr int64_t kMaxBytes = int64_t{1} << 31;

struct Header {
  char magic[8];
  std::byte fingerprint[kDigestBytes];
  int64_t first_position;
  int64_t num_tokens;
  int64_t bytes_per_block;
  int64_t sink_bytes;
  uint32_t sink_element;
  uint32_t zero;
};
static_assert(sizeof(Header) == kHeaderBytes);

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

void bytes_from_hex(const std::string& hex, std::byte* out) {
  LATHE_CHECK(hex.size() == 2 * kDigestBytes);
  for (std::size_t i = 0; i < kDigestBytes; ++i) {
    const int high = hex_digit(hex[2 * i]);
    const int low = hex_digit(hex[2 * i + 1]);
    LATHE_CHECK(high >= 0 && low >= 0);
    out[i] = static_cast<std::byte>(high * 16 + low);
  }
}

std::string hex_from_bytes(const std::byte* bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (std::size_t i = 0; i < kDigestBytes; ++i) {
    hex += kDigits[std::to_integer<unsigned>(bytes[i]) >> 4];
    hex += kDigits[std::to_integer<unsigned>(bytes[i]) & 15];
  }
  return hex;
}

}  // namespace

std::vector<std::byte> write_parked_record(const ParkedRecord& record) {
  LATHE_CHECK(record.first_position >= 0 && record.first_position % kBlockSize == 0);
  LATHE_CHECK(record.num_blocks() >= 1 && record.token_ids.size() % kBlockSize == 0);
  LATHE_CHECK(static_cast<int64_t>(record.codes.size()) ==
              record.num_blocks() * record.bytes_per_block);
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  bytes_from_hex(record.codec_fingerprint, header.fingerprint);
  header.first_position = record.first_position;
  header.num_tokens = static_cast<int64_t>(record.token_ids.size());
  header.bytes_per_block = record.bytes_per_block;
  header.sink_bytes = static_cast<int64_t>(record.sinks.size());
  header.sink_element = record.sink_element == KvElement::kF32 ? 0 : 1;
  std::vector<std::byte> bytes;
  bytes.reserve(kHeaderBytes + record.token_ids.size() * 4 + record.codes.size() +
                record.sinks.size() + kDigestBytes);
  const auto append = [&](std::span<const std::byte> part) {
    bytes.insert(bytes.end(), part.begin(), part.end());
  };
  append(std::as_bytes(std::span(&header, 1)));
  append(std::as_bytes(std::span(record.token_ids)));
  append(record.codes);
  append(record.sinks);
  std::byte digest[kDigestBytes];
  bytes_from_hex(sha256_hex(bytes), digest);
  append(digest);
  return bytes;
}

ParkedRecord read_parked_record(std::span<const std::byte> bytes, const std::string& what) {
  const auto corrupt = [&](const auto&... parts) {
    fail(ErrorCode::kCorruptData, what, ": ", parts...);
  };
  if (bytes.size() < kHeaderBytes + kDigestBytes) {
    corrupt(bytes.size(), " bytes are too few for a parked record");
  }
  const auto body = bytes.first(bytes.size() - kDigestBytes);
  if (sha256_hex(body) != hex_from_bytes(bytes.data() + body.size())) {
    corrupt("checksum does not fit; the record is torn or damaged");
  }
  Header header;
  std::memcpy(&header, bytes.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0 || header.zero != 0 ||
      header.sink_element > 1) {
    corrupt("not a parked record of this version");
  }
  if (header.first_position < 0 || header.first_position > kMaxTokens ||
      header.first_position % kBlockSize != 0 || header.num_tokens < kBlockSize ||
      header.num_tokens > kMaxTokens || header.num_tokens % kBlockSize != 0 ||
      header.bytes_per_block < 0 || header.bytes_per_block > kMaxBytes || header.sink_bytes < 0 ||
      header.sink_bytes > kMaxBytes) {
    corrupt("tokens ", header.first_position, " + ", header.num_tokens, ", blocks of ",
            header.bytes_per_block, " bytes, ", header.sink_bytes, " bytes of sinks");
  }
  const int64_t code_bytes = header.num_tokens / kBlockSize * header.bytes_per_block;
  const int64_t wanted =
      static_cast<int64_t>(kHeaderBytes) + header.num_tokens * 4 + code_bytes + header.sink_bytes;
  if (wanted != static_cast<int64_t>(body.size())) {
    corrupt("its header asks for ", wanted, " bytes, there are ", body.size());
  }
  ParkedRecord record;
  record.codec_fingerprint = hex_from_bytes(header.fingerprint);
  record.first_position = header.first_position;
  record.bytes_per_block = header.bytes_per_block;
  record.sink_element = header.sink_element == 0 ? KvElement::kF32 : KvElement::kBF16;
  record.token_ids.resize(static_cast<std::size_t>(header.num_tokens));
  std::memcpy(record.token_ids.data(), bytes.data() + kHeaderBytes, record.token_ids.size() * 4);
  const std::size_t codes_at = kHeaderBytes + record.token_ids.size() * 4;
  record.codes = body.subspan(codes_at, static_cast<std::size_t>(code_bytes));
  record.sinks = body.subspan(codes_at + record.codes.size());
  return record;
}

}  // namespace lathe
