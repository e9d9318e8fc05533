#include "print.hpp"

#include <array>
#include <boost/json.hpp>
#include <cstdio>
#include <ctime>
#include <fmt/format.h>
#include <iostream>
#include <sysexits.h>
#include <unistd.h>

namespace vtpmctl {

namespace json = boost::json;

std::string text_of(const json::value& v) {
    return v.is_string() ? std::string(v.get_string().c_str()) : json::serialize(v);
}

namespace {

std::string time_text(const json::value& seconds) {
    const auto t = static_cast<std::time_t>(seconds.to_number<std::int64_t>());
    std::tm tm{};
    ::gmtime_r(&t, &tm);
    std::array<char, 32> out{};
    (void)std::strftime(out.data(), out.size(), "%Y-%m-%d %H:%M", &tm);
    return out.data();
}

void print_vtpms(const json::array& all) {
    std::printf("%-36s  %-4s %-9s %8s  %-16s  %s\n", "UUID", "TPM", "STATE", "SAVES", "CREATED (UTC)", "NAME");
    for (const json::value& entry : all) {
        const json::object& v = entry.as_object();
        std::printf("%-36s  %-4s %-9s %8s  %s  %s\n", text_of(v.at("uuid")).c_str(),
                    text_of(v.at("tpm_version")).c_str(), text_of(v.at("state")).c_str(),
                    text_of(v.at("saves")).c_str(), time_text(v.at("created")).c_str(), text_of(v.at("name")).c_str());
    }
}

void print_groups(const json::array& all) {
    std::printf("%-36s  %6s %-6s %7s %8s  %s\n", "UUID", "NUMBER", "STATE", "VTPMS", "SEQUENCE", "CREATED (UTC)");
    for (const json::value& entry : all) {
        const json::object& g = entry.as_object();
        std::printf("%-36s  %6s %-6s %7s %8s  %s\n", text_of(g.at("uuid")).c_str(), text_of(g.at("number")).c_str(),
                    g.at("open").as_bool() ? "open" : "closed", text_of(g.at("vtpms")).c_str(),
                    text_of(g.at("sequence")).c_str(), time_text(g.at("created")).c_str());
    }
}

void print_recovery_keys(const json::array& all) {
    std::printf("%-8s  %-16s  %s\n", "ID", "CREATED (UTC)", "LABEL");
    for (const json::value& entry : all) {
        const json::object& k = entry.as_object();
        std::printf("%-8s  %-16s  %s\n", text_of(k.at("id")).c_str(), time_text(k.at("created")).c_str(),
                    text_of(k.at("label")).c_str());
    }
}

void print_pcrs(const json::array& pcrs) {
    for (const json::value& p : pcrs) {
        std::printf("  %s:%-2s %s\n", text_of(p.at("bank")).c_str(), text_of(p.at("index")).c_str(),
                    text_of(p.at("value")).c_str());
    }
}

/// Empty: there is nothing to say.
std::string field_text(std::string_view name, const json::value& v) {
    if ((name == "last_error_time" || name == "last_save") && text_of(v) == "0") {
        return "";
    }
    const bool time = name == "created" || name == "reset" || name == "last_error_time" || name == "last_save";
    return time ? time_text(v) : text_of(v);
}

void print_fields(const json::object& o) {
    for (const auto& member : o) {
        const std::string name(member.key());
        const json::value& v = member.value();
        if (name == "pcrs") {
            print_pcrs(v.as_array());
        } else if (name == "platforms") {
            for (const json::value& p : v.as_array()) {
                std::printf("platform           %s\n", text_of(p.at("selection")).c_str());
                print_pcrs(p.at("pcrs").as_array());
            }
        } else if (v.is_array()) {
            for (const json::value& one : v.get_array()) {
                std::printf("%-18s %s\n", name.c_str(), text_of(one).c_str());
            }
        } else if (const std::string text = field_text(name, v); text.find('\n') != std::string::npos) {
            std::printf("%s\n%s", name.c_str(), text.c_str());
        } else if (!text.empty()) {
            std::printf("%-18s %s\n", name.c_str(), text.c_str());
        }
    }
}

} // namespace

void print(const Options& o, const std::string& body) {
    if (o.has("json")) {
        std::fputs(body.c_str(), stdout);
        return;
    }
    const json::value v = json::parse(body);
    if (const auto* all = v.as_object().if_contains("vtpms"); all != nullptr && all->is_array()) {
        print_vtpms(all->get_array());
    } else if (const auto* keys = v.as_object().if_contains("recovery_keys")) {
        print_recovery_keys(keys->as_array());
    } else if (const auto* groups = v.as_object().if_contains("groups")) {
        print_groups(groups->as_array());
    } else {
        print_fields(v.get_object());
    }
}

void confirm(const Options& o, const std::string& question, const std::string& consequence) {
    if (o.has("yes")) {
        return;
    }
    if (::isatty(STDIN_FILENO) == 0) {
        fail(EX_USAGE, fmt::format("{} {} It cannot be undone, and there is no terminal to ask at; give --yes if it is "
                                   "meant",
                                   question, consequence));
    }
    std::fprintf(stderr, "%s %s Type yes: ", question.c_str(), consequence.c_str());
    std::string line;
    std::getline(std::cin, line);
    if (line != "yes") {
        fail(EX_USAGE, "nothing was changed");
    }
}

} // namespace vtpmctl
