#include "instance/command_line.hpp"

#include "util/service.hpp"
#include "util/text.hpp"
#include "util/unix_socket.hpp"

#include <algorithm>

namespace vtpmd::instance {

namespace {

constexpr OptionSpec specs[] = {
    {"uuid", "UUID", "which vTPM this is (required)"},
    {"manager", "ADDRESS", "unix:PATH (default unix:/run/vtpmd/manager.sock), or xen[:HANDLE]: in another Xen domain"},
    {"state", "PATH", "the vTPM's image, a file or block device (default /var/lib/vtpmd/UUID.img)"},
    {"create", "", "make a fresh TPM if this UUID never had one; existing state is never replaced"},
    {"tpm-version", "VERSION", "1.2 or 2.0, recorded at creation (default 2.0)"},
    {"pcr-banks", "LIST",
     "the PCR banks of a TPM 2.0 that is made: any of sha1, sha256, sha384, sha512 (default sha256,sha384)"},
    {"ek-certificates", "yes|no",
     "yes (default): a new TPM gets certificates of its endorsement keys, by the CA of its group; no: it has none, and "
     "is "
     "made sooner"},
    {"guest", "ENDPOINT",
     "socket:unix:PATH (control at PATH.ctrl), socket:tcp:[127.0.0.1:]PORT (control at PORT+1), qemu:PATH (the control "
     "channel of QEMU's tpm-emulator), xen:DOMID[/HANDLE], vtpmx (a /dev/tpmN of this host) or "
     "fd:[commands=N][,control=N][,remove] (sockets that were opened before); repeatable (default "
     "socket:unix:/run/vtpmd/UUID.sock)",
     true},
    {"locality-policy", "SUBJECT=LIST",
     "localities that a Xen guest may use: dom:N, label:XSM-LABEL or *, and a list such as 0,2-3; repeatable, the "
     "first "
     "that fits (default *=0)",
     true},
    {"tcp-user", "USER",
     "a user of this host, by name or number, who may connect to --guest=socket:tcp: as root and this process's own user "
     "may (repeatable)",
     true},
    {"tcp-anyone", "", "every user of this host may connect to --guest=socket:tcp:"},
    {"socket-group", "GROUP", "group that may connect to the guests' Unix sockets (default: the owner only)"},
    {"terminate", "",
     "end in good order once a connection that carried commands, or the device model, has gone (as swtpm's "
     "--terminate)"},
    {"disconnect", "", "close a connection for commands after each answer, as swtpm's --server ...,disconnect"},
    {"pid-file", "PATH", "written once guests are served, removed at the end; repeatable", true},
    {"startup", "MODE",
     "clear (default), save or deactivated: how the TPM is started for the guest; none: its firmware does; wait "
     "(default where a guest is qemu:): and the TPM is off until the device model's INIT"},
    {"hwinitpcrs", "PCRS", "all, none (default) or a list such as 5,12-16: PCRs that start with the host's values"},
    {"maintcmds", "0|1", "1 allows the TPM 1.2 maintenance commands (default 0)"},
    {"handover", "unix:PATH",
     "where another host asks for this vTPM after a live migration (its --incoming, led here by the operator)"},
    {"incoming", "WHERE",
     "this vTPM comes from another host by live migration: unix:PATH leads to the --handover of the instance there; "
     "unfenced: nobody is asked"},
    {"rollback", "POLICY", "refuse (default) or allow: whether a snapshot may put the TPM back to what it was"},
    {"sandbox", "MODE",
     "auto (default): an instance that a manager spawned gives up all that it does not need before it serves, as far "
     "as "
     "the kernel lets it, and says what it could not; on: each does, or does not start; off: none does"},
    {"user", "USER", "with the sandbox: go on as this user, by name or number, which nothing else should be"},
    {"config", "FILE", "more options, name = value (default /etc/vtpmd/instance.conf if it exists)"},
    {"log-level", "LEVEL", "error, warning, info (default) or debug", false, "loglevel"},
    {"help", "", "this text"},
};

Result<void> parse_identity(const CommandLine& line, InstanceOptions& out) {
    auto text = line.get("uuid");
    if (!text) {
        return make_error(Errc::usage, "--uuid is missing: say which vTPM this is, --uuid=UUID");
    }
    auto uuid = parse_uuid(*text);
    if (!uuid) {
        return make_error(Errc::usage, "--uuid: {}", uuid.error().message);
    }
    out.uuid = *uuid;
    if (out.uuid == Uuid{}) {
        return make_error(Errc::usage, "--uuid={}: this one means nobody; vtpmctl create makes one", *text);
    }
    if (auto version = line.get("tpm-version")) {
        if (*version != "1.2" && *version != "2.0") {
            return make_error(Errc::usage, "--tpm-version={}: expected 1.2 or 2.0", printable(*version));
        }
        out.tpm_version = *version == "1.2" ? TpmVersion::tpm12 : TpmVersion::tpm20;
    }
    if (auto wish = line.get("ek-certificates")) {
        if (*wish != "yes" && *wish != "no") {
            return make_error(Errc::usage, "--ek-certificates={}: yes or no is needed", printable(*wish));
        }
        out.ek_certificates = *wish == "yes";
    }
    if (auto list = line.get("pcr-banks")) {
        auto banks = parse_pcr_banks(*list);
        if (!banks) {
            return banks.error();
        }
        out.pcr_banks = std::move(*banks);
        out.pcr_banks_of_this = !line.is_from_file("pcr-banks");
    }
    return {};
}

Result<void> parse_places(const CommandLine& line, InstanceOptions& out) {
    out.state_path = line.get_or("state", default_state_path(out.uuid));
    out.socket_group = line.get_or("socket-group", "");
    out.tcp_peers.anyone = line.has("tcp-anyone");
    for (const std::string& name : line.all("tcp-user")) {
        const auto user = find_user(name);
        if (!user) {
            return make_error(Errc::usage, "--tcp-user={}: this host has no such user", printable(name));
        }
        out.tcp_peers.users.insert(*user);
    }
    out.pid_files = line.all("pid-file");
    if (auto text = line.get("manager")) {
        auto address = parse_manager_address(*text);
        if (!address) {
            return address.error();
        }
        out.manager = *address;
    }
    for (const std::string& text : line.all("guest")) {
        auto endpoint = guest::parse_endpoint(text);
        if (!endpoint) {
            return endpoint.error();
        }
        out.guests.push_back(std::move(*endpoint));
    }
    if (out.guests.empty()) {
        out.guests.push_back(default_endpoint(out.uuid));
    }
    return {};
}

Result<void> parse_sandbox(const CommandLine& line, InstanceOptions& out) {
    if (auto text = line.get("sandbox")) {
        auto mode = parse_sandbox_mode(*text);
        if (!mode) {
            return mode.error();
        }
        out.sandbox = *mode;
    }
    if (auto name = line.get("user")) {
        out.user = find_user(*name);
        if (!out.user || *out.user == 0) {
            return make_error(Errc::usage, "--user={}: this host has no such user, or it is root", printable(*name));
        }
        if (out.sandbox == SandboxMode::off) {
            return make_error(Errc::usage, "--user: a part of the sandbox, which is off; leave --sandbox=off out");
        }
    }
    return {};
}

Result<std::string> socket_path(std::string_view option, std::string_view text) {
    constexpr std::string_view prefix = "unix:";
    if (!text.starts_with(prefix) || text.size() <= prefix.size() || text[prefix.size()] != '/') {
        return make_error(Errc::usage, "--{}={}: unix:PATH with an absolute path is needed", option, printable(text));
    }
    return std::string(text.substr(prefix.size()));
}

Result<void> parse_migration(const CommandLine& line, InstanceOptions& out) {
    if (auto text = line.get("handover")) {
        auto path = socket_path("handover", *text);
        if (!path) {
            return path.error();
        }
        out.handover_path = std::move(*path);
    }
    if (auto text = line.get("incoming")) {
        out.incoming = true;
        if (*text != "unfenced") {
            auto path = socket_path("incoming", *text);
            if (!path) {
                return path.error();
            }
            out.incoming_path = std::move(*path);
        }
        if (out.startup != Startup::wait) {
            return make_error(Errc::usage, "--incoming: the TPM must wait for its state, as with --guest=qemu: or "
                                           "--startup=wait");
        }
    }
    if (auto text = line.get("rollback")) {
        if (*text != "refuse" && *text != "allow") {
            return make_error(Errc::usage, "--rollback={}: refuse or allow is needed", printable(*text));
        }
        out.allow_rollback = *text == "allow";
    }
    return {};
}

Result<void> parse_behaviour(const CommandLine& line, InstanceOptions& out) {
    if (auto text = line.get("startup")) {
        auto startup = parse_startup(*text);
        if (!startup) {
            return startup.error();
        }
        out.startup = *startup;
    } else if (std::any_of(out.guests.begin(), out.guests.end(),
                           [](const auto& g) { return std::holds_alternative<guest::QemuEndpoint>(g); })) {
        // Firmware starts it. To find it started is a failure for SeaBIOS, which then disables the owner's hierarchy.
        out.startup = Startup::wait;
    }
    if (auto text = line.get("hwinitpcrs")) {
        auto pcrs = parse_pcr_list(*text);
        if (!pcrs) {
            return pcrs.error();
        }
        out.hwinitpcrs = std::move(*pcrs);
    }
    if (!out.hwinitpcrs.empty() && (out.startup == Startup::none || out.startup == Startup::wait)) {
        return make_error(Errc::usage,
                          "--hwinitpcrs: PCRs can be given only to a TPM that is started for its guest, not "
                          "with --startup=none or wait (the default of --guest=qemu:)");
    }
    if (auto done = parse_migration(line, out); !done) {
        return done;
    }
    for (const std::string& rule : line.all("locality-policy")) {
        if (auto added = out.localities.add(rule); !added) {
            return added;
        }
    }
    for (auto [name, target] : {std::pair{"create", &out.create},
                                {"maintcmds", &out.maintenance_commands},
                                {"terminate", &out.terminate},
                                {"disconnect", &out.disconnect}}) {
        auto value = line.flag(name);
        if (!value) {
            return value.error();
        }
        *target = *value;
    }
    return {};
}

Result<void> adopt_sockets(InstanceOptions& out) {
    for (PassedSocket& socket : take_passed_sockets()) {
        UniqueFd& place = socket.name == "control" ? out.listen_control : out.listen_commands;
        if (place) {
            return make_error(Errc::usage,
                              "two sockets named '{}' were passed; pass one for 'commands' and one for "
                              "'control' (FileDescriptorName=)",
                              printable(socket.name));
        }
        place = std::move(socket.fd);
    }
    return {};
}

} // namespace

std::span<const OptionSpec> option_specs() { return specs; }

Result<InstanceOptions> parse_options(const CommandLine& line) {
    InstanceOptions out;
    for (auto* part : {parse_identity, parse_places, parse_behaviour, parse_sandbox}) {
        if (auto done = part(line, out); !done) {
            return done.error();
        }
    }
    if (auto adopted = adopt_sockets(out); !adopted) {
        return adopted.error();
    }
    return out;
}

} // namespace vtpmd::instance
