#include "instance/options.hpp"

#include "util/text.hpp"

#include <algorithm>
#include <set>

namespace vtpmd::instance {

namespace {
constexpr unsigned pcr_limit = 23;

constexpr std::pair<std::string_view, std::uint16_t> bank_names[] = {
    {"sha1", tpm::alg::sha1},
    {"sha256", tpm::alg::sha256},
    {"sha384", tpm::alg::sha384},
    {"sha512", tpm::alg::sha512},
};
} // namespace

Result<Startup> parse_startup(std::string_view text) {
    if (text == "clear") {
        return Startup::clear;
    }
    if (text == "save") {
        return Startup::save;
    }
    if (text == "deactivated") {
        return Startup::deactivated;
    }
    if (text == "none") {
        return Startup::none;
    }
    if (text == "wait") {
        return Startup::wait;
    }
    return make_error(Errc::usage, "--startup={}: clear, save, deactivated, none or wait is needed", text);
}

Result<std::vector<unsigned>> parse_pcr_list(std::string_view text) {
    std::set<unsigned> pcrs;
    for (std::string_view part : split(text, ',')) {
        if (part == "none") {
            pcrs.clear();
            continue;
        }
        if (part == "all") {
            part = "0-23";
        }
        const auto dash = part.find('-');
        auto first = parse_number(part.substr(0, dash), pcr_limit);
        auto last = dash == std::string_view::npos ? first : parse_number(part.substr(dash + 1), pcr_limit);
        if (!first || !last) {
            return make_error(Errc::usage,
                              "--hwinitpcrs={}: '{}' is no PCR; all, none, or PCR numbers from 0 to {} such as 5,12-16 "
                              "are needed",
                              printable(text), printable(part), pcr_limit);
        }
        for (auto i = std::min(*first, *last); i <= std::max(*first, *last); ++i) {
            pcrs.insert(static_cast<unsigned>(i));
        }
    }
    return std::vector<unsigned>(pcrs.begin(), pcrs.end());
}

Result<std::vector<std::uint16_t>> parse_pcr_banks(std::string_view text) {
    std::vector<std::uint16_t> banks;
    for (std::string_view part : split(text, ',')) {
        const auto* found = std::find_if(std::begin(bank_names), std::end(bank_names),
                                         [part](const auto& named) { return named.first == part; });
        if (found == std::end(bank_names)) {
            return make_error(
                Errc::usage,
                "--pcr-banks={}: '{}' is no PCR bank; a list of sha1, sha256, sha384 and sha512 is needed, "
                "such as sha256,sha384",
                printable(text), printable(part));
        }
        if (std::find(banks.begin(), banks.end(), found->second) != banks.end()) {
            return make_error(Errc::usage, "--pcr-banks={}: {} is there twice", printable(text), part);
        }
        banks.push_back(found->second);
    }
    return banks;
}

Result<ManagerAddress> parse_manager_address(std::string_view text) {
    ManagerAddress address;
    if (text == "xen" || text.starts_with("xen:")) {
        auto handle =
            text == "xen" ? Result<std::uint64_t>(std::uint64_t{0}) : parse_number(text.substr(4), 0xFFFFFFFF);
        if (!handle) {
            return make_error(Errc::usage, "--manager={}: xen or xen:HANDLE, a number, is needed", text);
        }
        address.xen_handle = static_cast<std::uint32_t>(*handle);
        return address;
    }
    for (std::string_view part : split(text, ',')) {
        if (part.starts_with("fd:") && !address.inherited_fd) {
            auto fd = parse_number(part.substr(3), 1U << 20);
            if (!fd || *fd < 3) {
                return make_error(Errc::usage, "--manager={}: fd:N needs a descriptor number from 3", text);
            }
            address.inherited_fd = static_cast<int>(*fd);
        } else if (part.starts_with("unix:/") && address.path.empty()) {
            address.path = part.substr(5);
        } else {
            return make_error(Errc::usage, "--manager={}: unix:PATH with an absolute path, or xen[:HANDLE], is needed",
                              text);
        }
    }
    return address;
}

std::string default_state_path(const Uuid& uuid) { return fmt::format("/var/lib/vtpmd/{}.img", uuid); }

guest::Endpoint default_endpoint(const Uuid& uuid) {
    return guest::UnixEndpoint{fmt::format("/run/vtpmd/{}.sock", uuid)};
}

} // namespace vtpmd::instance
