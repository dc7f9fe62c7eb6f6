# The project's own build vocabulary: one static library per layer, one test binary per layer.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O2")  # assertions stay: LATHE_CHECK does not look at NDEBUG
find_package(Threads REQUIRED)

set(LATHE_SANITIZE "" CACHE STRING "Sanitizers, as -fsanitize= takes them")
option(LATHE_WERROR "Warnings are errors" OFF)
option(LATHE_FUZZ "Build the fuzz targets instead of the tests (clang)" OFF)

add_library(lathe_options INTERFACE)
# -ffp-contract=off: the reference and the fast kernels must not differ by what the compiler fuses.
# -Wno-restrict: GCC 12 sees overlaps in std::string that are not there (PR105651).
set(lathe_warnings -Wall -Wextra -Wconversion -Wshadow -Wno-sign-conversion -ffp-contract=off
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict> $<$<BOOL:${LATHE_WERROR}>:-Werror>)
target_compile_options(lathe_options INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${lathe_warnings}>")
target_include_directories(lathe_options INTERFACE ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(lathe_options INTERFACE Threads::Threads)
if(LATHE_SANITIZE)
  # Half the time to compile of -O2 with all checks: -O1, and none of the undefined ones that stand at every access
  # and that the address sanitizer or a crash shows as well.
  target_compile_options(lathe_options INTERFACE -fsanitize=${LATHE_SANITIZE}
    -fno-sanitize=null,object-size,vptr -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O1
    # Between the checks GCC loses track of what is initialized (std::optional), and warns at random.
    $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  target_link_options(lathe_options INTERFACE -fsanitize=${LATHE_SANITIZE})
endif()
if(LATHE_FUZZ)
  target_compile_options(lathe_options INTERFACE -fsanitize=fuzzer-no-link,address,undefined
    -fno-sanitize-recover=all -g1)
  target_link_options(lathe_options INTERFACE -fsanitize=address,undefined)
endif()

# The GPU backend needs the toolkit alone. CMake 3.25 does not know how CUDA 13 spells C++20, so the
# flag is given by hand. cudart is linked statically; cuBLAS and cuSOLVER are the toolkit's own .so.
if(LATHE_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES 90a-real CACHE STRING "GPU architectures to build for")
  enable_language(CUDA)
  find_package(CUDAToolkit 12.8 REQUIRED)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED OFF)
  string(APPEND CMAKE_CUDA_FLAGS " -std=c++20 --expt-relaxed-constexpr -lineinfo")
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
elseif(LATHE_CUDA_BLACKWELL)
  message(FATAL_ERROR "LATHE_CUDA_BLACKWELL needs LATHE_CUDA")
endif()

# lathe_layer(NAME SOURCES a.cpp... CUDA b.cu... USES base... LINK External::lib... CUDA_LINK CUDA::lib...)
# What stands under CUDA and CUDA_LINK counts with LATHE_CUDA only. The kernels, and whoever uses them,
# see LATHE_HAS_CUDA then.
# A source whose name ends in _avx2 or _avx512 is built for that instruction set; such a file gives
# external linkage to its entry functions only and instantiates no standard-library templates, since
# the linker may keep its copy for everyone.
function(lathe_layer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;CUDA;USES;LINK;CUDA_LINK" ${ARGN})
  if(LATHE_CUDA)
    list(APPEND ARG_SOURCES ${ARG_CUDA})
    if(ARG_CUDA)
      list(APPEND ARG_LINK CUDA::cudart_static ${ARG_CUDA_LINK})
    endif()
  endif()
  add_library(lathe_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(lathe_${name} PUBLIC lathe_options)
  foreach(layer IN LISTS ARG_USES)
    target_link_libraries(lathe_${name} PUBLIC lathe_${layer})
  endforeach()
  target_link_libraries(lathe_${name} PRIVATE ${ARG_LINK})
  foreach(source IN LISTS ARG_SOURCES)
    if(source MATCHES "_avx2\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c;-mbmi2")
    elseif(source MATCHES "_avx512\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
        "-mavx2;-mfma;-mf16c;-mbmi2;-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vnni;-mavx512vbmi;-mavx512bf16;-mprefer-vector-width=512")
    elseif(source MATCHES "_amx\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
        "-mavx2;-mfma;-mf16c;-mbmi2;-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vnni;-mavx512vbmi;-mavx512bf16;-mamx-tile;-mamx-bf16;-mprefer-vector-width=512")
    endif()
  endforeach()
endfunction()

# lathe_test(NAME [THREADS] USES layers... SOURCES a_test.cpp... [LABELS fast|model...] [LINK ...])
# One binary per layer, one CTest entry per binary. Exit code 77 counts as skipped. THREADS: its threads share more than
# parallel_for's ranges, so ThreadSanitizer is worth its time: label `threads`, built by target threads_tests.
function(lathe_test name)
  cmake_parse_arguments(ARG "THREADS" "" "SOURCES;USES;LABELS;LINK" ${ARGN})
  add_executable(${name}_test ${ARG_SOURCES})
  target_link_libraries(${name}_test PRIVATE lathe_test_support GTest::gtest GTest::gtest_main ${ARG_LINK})
  foreach(layer IN LISTS ARG_USES)
    target_link_libraries(${name}_test PRIVATE lathe_${layer})
  endforeach()
  add_test(NAME ${name} COMMAND ${name}_test)
  if(NOT ARG_LABELS)
    set(ARG_LABELS fast)
  endif()
  if(ARG_THREADS)
    list(APPEND ARG_LABELS threads)
    add_dependencies(threads_tests ${name}_test)
  endif()
  # scripts/count_tests.py reads the result files.
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 1200 SKIP_RETURN_CODE 77
    ENVIRONMENT "LATHE_SOURCE_DIR=${PROJECT_SOURCE_DIR};LATHE_BINARY=$<TARGET_FILE:lathe>;GTEST_OUTPUT=xml:${PROJECT_BINARY_DIR}/test-results/${name}.xml")
endfunction()

# lathe_script_test(NAME script.py args...): a test in Python's standard library. Exit code 77 counts as
# skipped; the last line of the output is the reason.
function(lathe_script_test name)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  add_test(NAME ${name} COMMAND Python3::Interpreter -B ${ARGN})
  set_tests_properties(${name} PROPERTIES LABELS fast TIMEOUT 600 SKIP_RETURN_CODE 77)
endfunction()
