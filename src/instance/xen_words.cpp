#include "instance/xen_words.hpp"

#include "instance/command_line.hpp"
#include "util/text.hpp"

namespace vtpmd::instance {

namespace {

Translation option(std::string_view name, std::string_view value) {
    return {.arguments = {fmt::format("--{}={}", name, value)}, .notices = {}};
}

constexpr ForeignWord stub_domain_words[] = {
    {"clear", [](std::string_view) -> Result<Translation> { return option("startup", "clear"); }},
    {"save", [](std::string_view) -> Result<Translation> { return option("startup", "save"); }},
    {"deactivated", [](std::string_view) -> Result<Translation> { return option("startup", "deactivated"); }},
    {"hwinitpcr=", [](std::string_view value) -> Result<Translation> { return option("hwinitpcrs", value); }},
    {"locality=",
     [](std::string_view value) -> Result<Translation> {
         if (value.find('=') == std::string_view::npos) {
             return make_error(Errc::usage, "locality={}: expected locality=LABEL=LIST, such as {}", printable(value),
                               "locality=system_u:vm_r:guest_t=0,2; --locality-policy has the same for domains");
         }
         return option("locality-policy", fmt::format("label:{}", value));
     }},
    {"tpm2=",
     [](std::string_view) -> Result<Translation> {
         return make_error(Errc::usage, "tpm2= is a word of the manager (vtpmmgr-stubdom), which asks the hardware TPM "
                                        "itself; --tpm-version=2.0 makes this vTPM a TPM 2.0");
     }},
};

} // namespace

Result<Translation> translate_xen_words(const std::vector<std::string>& arguments) {
    return translate_words(stub_domain_words, option_specs(), arguments);
}

} // namespace vtpmd::instance
