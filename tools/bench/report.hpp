// The table and the JSON document: absolute numbers, ratios beside them, and the machine they come from.
#pragma once

#include <boost/json/object.hpp>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bench {

/// One line: what was measured, for us, for swtpm, and what the ratio ours / theirs is meant to be.
struct Row {
    std::string name;
    std::string unit;
    double ours = 0;
    std::optional<double> theirs = std::nullopt;
    std::optional<double> at_most = std::nullopt;  ///< wanted: ratio <= this
    std::optional<double> at_least = std::nullopt; ///< wanted: ratio >= this
    std::optional<double> limit = std::nullopt;    ///< wanted: ours <= this
};

class Report {
  public:
    void add(Row row) { rows_.push_back(std::move(row)); }
    void note(std::string text) { notes_.push_back(std::move(text)); }
    [[nodiscard]] std::string table() const;
    [[nodiscard]] std::string json() const;
    /// CPU, kernel, file system of `dir`, versions.
    void describe_machine(const std::filesystem::path& dir, const std::string& swtpm_version);

  private:
    std::vector<Row> rows_;
    std::vector<std::string> notes_;
    std::vector<std::pair<std::string, std::string>> machine_;
};

/// The first line that a program prints.
[[nodiscard]] std::string first_line_of(const std::string& command);

} // namespace bench
