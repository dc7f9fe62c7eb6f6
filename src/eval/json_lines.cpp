#include "eval/json_lines.h"

#include <zlib.h>

#include <string_view>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"

namespace lathe {
namespace {

std::string inflate_gzip(const std::string& packed, const std::string& path, int64_t max_bytes) {
  z_stream stream = {};
  if (inflateInit2(&stream, 15 + 16) != Z_OK) fail(ErrorCode::kInternal, "zlib does not start");
  struct End {
    z_stream* stream;
    ~End() { inflateEnd(stream); }
  } end{&stream};
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  std::string text;
  std::string piece(std::size_t{1} << 16, '\0');
  int status = Z_OK;
  while (status != Z_STREAM_END) {
    stream.next_out = reinterpret_cast<Bytef*>(piece.data());
    stream.avail_out = static_cast<uInt>(piece.size());
    status = inflate(&stream, Z_NO_FLUSH);
    if (status != Z_OK && status != Z_STREAM_END) {
      fail(ErrorCode::kCorruptData, path, ": the gzip data is broken or ends early");
    }
    text.append(piece, 0, piece.size() - stream.avail_out);
    if (static_cast<int64_t>(text.size()) > max_bytes) {
      fail(ErrorCode::kCorruptData, path, ": inflates to more than ", max_bytes, " bytes");
    }
  }
  return text;
}

}  // namespace

std::string read_text_file(const std::string& path, int64_t max_bytes) {
  std::string content = read_file(path, max_bytes);
  const bool gzip = content.size() >= 2 && content[0] == '\x1f' && content[1] == '\x8b';
  return gzip ? inflate_gzip(content, path, max_bytes) : content;
}

void for_each_json_line(const std::string& path, const std::function<void(const Json&)>& body) {
  const std::string text = read_text_file(path);
  int64_t line_number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = text.find('\n', begin);
    if (end == std::string::npos) end = text.size();
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = str(path, " line ", line_number);
    const Json json = parse_json(line, where);
    with_context(where, [&] { body(json); });
  }
}

std::string string_field(const Json& object, const char* name) {
  if (!object.is_object() || !object.contains(name) || !object[name].is_string()) {
    fail(ErrorCode::kCorruptData, "no string '", name, "'");
  }
  return object[name].get<std::string>();
}

}  // namespace lathe
