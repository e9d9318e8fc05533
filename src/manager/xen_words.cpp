#include "manager/xen_words.hpp"

#include "manager/command_line.hpp"
#include "util/text.hpp"

#include <algorithm>

namespace vtpmd::manager {

namespace {

Translation one(std::string argument) { return {.arguments = {std::move(argument)}, .notices = {}}; }
Translation without_effect(std::string notice) { return {.arguments = {}, .notices = {std::move(notice)}}; }

Result<Translation> auth(std::string_view option, std::string_view value) {
    if (value == "random") {
        return make_error(
            Errc::usage,
            "{}=random: vtpmd takes no ownership of the hardware TPM, so it makes no authorisation either. "
            "Take ownership first (tpm_takeownership, tpm2_changeauth), then give well-known, hash:HEX or "
            "text:STR",
            option);
    }
    return one(fmt::format("--{}={}", option, value));
}

Result<Translation> driver(std::string_view value) {
    if (value == "tpm_tis") {
        return one("--tpm=tis");
    }
    if (value == "tpmfront") {
        return one("--tpm=xen");
    }
    return make_error(Errc::usage, "tpmdriver={}: expected tpm_tis or tpmfront; --tpm has more drivers",
                      printable(value));
}

constexpr ForeignWord stub_domain_words[] = {
    {"owner_auth=", [](std::string_view value) { return auth("owner-auth", value); }},
    {"srk_auth=", [](std::string_view value) { return auth("srk-auth", value); }},
    {"srk_handle=",
     [](std::string_view value) -> Result<Translation> {
         return one(fmt::format("--srk-handle={}{}", value.starts_with("0x") ? "" : "0x", value));
     }},
    {"tpmdriver=", driver},
    {"tpmiomem=",
     [](std::string_view value) -> Result<Translation> {
         return one(fmt::format("--tpm=tis:{}{}", value.starts_with("0x") ? "" : "0x", value));
     }},
    {"tpmirq=",
     [](std::string_view value) -> Result<Translation> {
         if (value != "probe" && !parse_number(value, 255)) {
             return make_error(Errc::usage, "tpmirq={}: expected 0, probe or the number of an interrupt",
                               printable(value));
         }
         return without_effect("tpmirq has no effect: the TIS driver polls the registers and uses no interrupt");
     }},
    {"tpm2=",
     [](std::string_view value) -> Result<Translation> {
         if (value != "0" && value != "1") {
             return make_error(Errc::usage, "tpm2={}: expected 0 or 1", printable(value));
         }
         return without_effect("tpm2 has no effect: the hardware TPM is asked whether it is a TPM 1.2 or 2.0");
     }},
};

} // namespace

Result<Translation> translate_xen_words(const std::vector<std::string>& arguments) {
    auto out = translate_words(stub_domain_words, option_specs(), arguments);
    if (out && std::ranges::any_of(out->arguments, [](const auto& a) { return a.starts_with("--tpm=tis:"); })) {
        std::erase(out->arguments, "--tpm=tis"); // tpmdriver=tpm_tis beside tpmiomem=ADDRESS
    }
    return out;
}

} // namespace vtpmd::manager
