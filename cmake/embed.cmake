# lathe_embed(OUTPUT NAMES...): writes the C++ source of server/embedded.h. Names are relative to the current source
# directory. The assembler puts a file's bytes into the read-only data; a string literal takes the compiler seconds.
function(lathe_embed output)
  set(assembly "")
  set(declarations "")
  set(table "")
  set(index 0)
  foreach(name IN LISTS ARGN)
    set(symbol lathe_embedded_${index})
    string(APPEND assembly "    \".hidden ${symbol}_begin\\n.hidden ${symbol}_end\\n\"\n"
      "    \".globl ${symbol}_begin\\n.globl ${symbol}_end\\n\"\n"
      "    \"${symbol}_begin:\\n.incbin \\\"${CMAKE_CURRENT_SOURCE_DIR}/${name}\\\"\\n${symbol}_end:\\n\"\n")
    string(APPEND declarations "extern const char ${symbol}_begin[];\nextern const char ${symbol}_end[];\n")
    string(APPEND table "  if (name == \"${name}\") return {${symbol}_begin, ${symbol}_end};\n")
    math(EXPR index "${index} + 1")
  endforeach()
  file(CONFIGURE OUTPUT ${output} @ONLY CONTENT "// Written by cmake/embed.cmake.
#include \"server/embedded.h\"

asm(\".pushsection .rodata\\n\"
@assembly@    \".popsection\\n\");

extern \"C\" {
@declarations@}

namespace lathe {

std::string_view embedded_file(std::string_view name) {
@table@  return {};
}

}  // namespace lathe
")
  list(TRANSFORM ARGN PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
  set_source_files_properties(${output} PROPERTIES OBJECT_DEPENDS "${ARGN}")
endfunction()
