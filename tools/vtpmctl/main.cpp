// vtpmctl: what the manager's API does (src/api), for people: tables, questions before destruction, exit codes of sysexits(3).
// What needs no manager uses what is pure of the daemon's library.
#include "command_line.hpp"
#include "util/standard_descriptors.hpp"

#include <cstdio>
#include <exception>
#include <sysexits.h>

int main(int argc, char** argv) {
    using namespace vtpmctl;
    if (!vtpmd::open_standard_descriptors()) {
        return EX_OSFILE;
    }
    try {
        const auto asked = parse({argv + 1, argv + argc});
        if (const auto* text = std::get_if<std::string>(&asked)) {
            std::fputs(text->c_str(), stdout);
        } else {
            const Call& call = std::get<Call>(asked);
            call.command->run(call.options);
        }
        return EX_OK;
    } catch (const Failure& f) {
        std::fprintf(stderr, "vtpmctl: %s\n", f.message.c_str());
        return f.status;
    } catch (const std::exception& e) {
        std::fprintf(stderr, "vtpmctl: %s; what answers at the socket may be of another version\n", e.what());
        return EX_SOFTWARE;
    }
}
