// EXPECT that a piece of code throws an Error with a code and a message that holds a text.
#pragma once
#include <gtest/gtest.h>

#include <string>

#include "base/error.h"

namespace lathe {

template <typename Body>
void expect_error(ErrorCode code, const std::string& message_part, Body&& body) {
  try {
    body();
    ADD_FAILURE() << "no error; expected " << to_string(code) << " with '" << message_part << "'";
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.code()), to_string(code)) << error.what();
    EXPECT_NE(std::string(error.what()).find(message_part), std::string::npos)
        << "message: " << error.what() << "\nlacks: " << message_part;
  }
}

}  // namespace lathe
