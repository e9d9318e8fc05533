// What the manager answered, for people; and what is asked before something is destroyed.
#pragma once

#include "options.hpp"

#include <boost/json/value.hpp>
#include <string>

namespace vtpmctl {

/// The body of an answer: tables and fields, or with --json as it is.
void print(const Options& o, const std::string& body);

/// A text without its quotes; anything else as JSON has it.
[[nodiscard]] std::string text_of(const boost::json::value& v);

/// `question` says what is done to what ("Delete vTPM U for good?"), `consequence` what is lost. Not asked with --yes.
void confirm(const Options& o, const std::string& question, const std::string& consequence);

} // namespace vtpmctl
