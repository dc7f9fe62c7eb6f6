#include "formats/safetensors.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/error.h"
#include "formats/safetensors_header.h"

namespace lathe {
namespace {

// The view of one header entry, its offsets checked against the data area and its shape.
TensorView view_of(const SafetensorsHeaderEntry& entry, std::span<const std::byte> data,
                   const std::string& what) {
  const auto corrupt = [&](const auto&... parts) {
    fail(ErrorCode::kCorruptData, what, ": tensor '", entry.name, "': ", parts...);
  };
  const std::optional<DType> dtype = dtype_from_name(entry.dtype);
  if (!dtype) {
    fail(ErrorCode::kUnsupported, what, ": tensor '", entry.name, "': unknown dtype '",
         entry.dtype.substr(0, 40), "'");
  }
  if (entry.begin > entry.end || entry.end > data.size()) {
    corrupt("data_offsets [", entry.begin, ", ", entry.end, "] outside the ", data.size(),
            " bytes of data (is the file complete?)");
  }
  const int64_t count = with_context(what + ": tensor '" + entry.name + "'",
                                     [&] { return num_elements(entry.shape); });
  int64_t num_bytes = 0;
  if (__builtin_mul_overflow(count, dtype_size(*dtype), &num_bytes) ||
      static_cast<uint64_t>(num_bytes) != entry.end - entry.begin) {
    corrupt("shape ", to_string(entry.shape), " of ", entry.dtype, " does not make ",
            entry.end - entry.begin, " bytes");
  }
  return {*dtype, entry.shape, data.data() + entry.begin};
}

}  // namespace

SafetensorsContent parse_safetensors(std::span<const std::byte> file, const std::string& what) {
  uint64_t header_bytes = 0;
  if (file.size() < sizeof header_bytes) {
    fail(ErrorCode::kCorruptData, what, ": ", file.size(), " bytes are too few for safetensors");
  }
  std::memcpy(&header_bytes, file.data(), sizeof header_bytes);
  if (header_bytes > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes) ||
      header_bytes > file.size() - sizeof header_bytes) {
    fail(ErrorCode::kCorruptData, what, ": header of ", header_bytes, " bytes in a file of ",
         file.size(), " (not safetensors, or truncated)");
  }
  const auto* text = reinterpret_cast<const char*>(file.data()) + sizeof header_bytes;
  SafetensorsHeader header = parse_safetensors_header({text, header_bytes}, what);
  const auto data = file.subspan(sizeof header_bytes + header_bytes);

  std::stable_sort(header.entries.begin(), header.entries.end(),
                   [](const SafetensorsHeaderEntry& a, const SafetensorsHeaderEntry& b) {
                     return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
                   });
  SafetensorsContent content;
  content.metadata = std::move(header.metadata);
  content.tensors.reserve(header.entries.size());
  uint64_t covered = 0;
  for (SafetensorsHeaderEntry& entry : header.entries) {
    TensorView view = view_of(entry, data, what);
    if (entry.begin != covered) {
      fail(ErrorCode::kCorruptData, what, ": tensor '", entry.name, "' begins at byte ",
           entry.begin, ", but the tensor before it ends at ", covered,
           entry.begin < covered ? " (overlap)" : " (hole)");
    }
    covered = entry.end;
    content.tensors.push_back({std::move(entry.name), std::move(view)});
  }
  if (covered != data.size()) {
    fail(ErrorCode::kCorruptData, what, ": tensors end at byte ", covered, " of ", data.size());
  }
  return content;
}

bool aligned(const TensorView& view) {
  return reinterpret_cast<std::uintptr_t>(view.data) %
             static_cast<std::uintptr_t>(dtype_size(view.dtype)) ==
         0;
}

Tensor load_dense(const TensorView& view, DType dtype) {
  if (aligned(view)) return convert(view, dtype);
  Tensor copy(view.dtype, view.shape);
  if (copy.num_bytes() > 0) {
    std::memcpy(copy.data(), view.data, static_cast<std::size_t>(copy.num_bytes()));
  }
  return view.dtype == dtype ? std::move(copy) : convert(copy.view(), dtype);
}

SafetensorsFile::SafetensorsFile(const std::string& path)
    : file_(path), content_(parse_safetensors(file_.bytes(), path)) {
  index_.reserve(content_.tensors.size());
  for (std::size_t i = 0; i < content_.tensors.size(); ++i) {
    index_.emplace(content_.tensors[i].name, i);
  }
}

const TensorView* SafetensorsFile::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &content_.tensors[found->second].view;
}

const TensorView& SafetensorsFile::at(const std::string& name) const {
  const TensorView* view = find(name);
  if (view == nullptr) fail(ErrorCode::kNotFound, path(), ": no tensor '", name, "'");
  return *view;
}

}  // namespace lathe
