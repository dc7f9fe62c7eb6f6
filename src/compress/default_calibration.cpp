#include "compress/default_calibration.h"

#ifndef LATHE_DEFAULT_CALIBRATION
#error "LATHE_DEFAULT_CALIBRATION must name the text file"
#endif

// The assembler puts the file's bytes into the read-only data; a string literal of this size takes
// the compiler seconds.
asm(".pushsection .rodata\n"
    ".hidden lathe_default_calibration_begin\n"
    ".hidden lathe_default_calibration_end\n"
    ".globl lathe_default_calibration_begin\n"
    ".globl lathe_default_calibration_end\n"
    "lathe_default_calibration_begin:\n"
    ".incbin \"" LATHE_DEFAULT_CALIBRATION
    "\"\n"
    "lathe_default_calibration_end:\n"
    ".popsection\n");

extern "C" {
extern const char lathe_default_calibration_begin[];
extern const char lathe_default_calibration_end[];
}

namespace lathe {

std::string_view default_calibration_text() {
  return {lathe_default_calibration_begin, lathe_default_calibration_end};
}

}  // namespace lathe
