#include "options.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fmt/format.h>
#include <fstream>
#include <iterator>
#include <sysexits.h>

namespace vtpmctl {

const std::string_view help_text = R"(vtpmctl )" VTPMD_VERSION R"(: manages the virtual TPMs of this host's vtpmd

  vtpmctl [OPTION...] COMMAND

  list                     all vTPMs, or those with --name or in --group
  show VTPM                one vTPM
  create [UUID]            register a new vTPM; a UUID is made up if none is given
  rename VTPM NAME         call it so; '' takes its name away
  move VTPM                to the group --group, as long as it has saved nothing
  start VTPM               keep an instance running for it
  stop VTPM                end that instance in good order
  reset VTPM               reset it to factory: a fresh TPM at its next start, the old state does not come back
  delete VTPM              delete it for good; no copy of it will be accepted again
  quote VTPM               a deep quote of a vTPM that runs: --nonce, --out [, --pcrs, --host-pcrs]
  backup FILE              a copy of the manager's store, which goes on meanwhile
  group list               all groups
  group show GROUP         one group, with its approval list and keys
  group create             make a group: --approver, --list [, --recovery-key, --recovery-signature]
  group update GROUP       put a newer approval list in the place of the present one: --list
  group recover GROUP      its key, from its approver, after the hardware TPM was replaced: --shared
  group ca GROUP           the CA of its vTPMs' endorsement keys: its certificates in PEM [--csr, --set]
  group delete GROUP       delete a group that has no vTPMs
  status                   the manager, its store and its hardware TPM
  seal                     what the store is sealed to, and the PCRs as they are
  freshness                rollback protection and the wear of the TPM's counter
  metrics                  figures in Prometheus' text format
  top                      a live view, the busiest vTPMs first; q ends it [--interval, --once]

 VTPM is a vTPM's UUID, or its name if no other has the same.

 Without a manager, on files alone:
  approve                  sign an approval list, as a group's approver: --key, --group, --sequence, --pcr or
                           --platform [, --epoch, --label, --recovery-key], --out
  verify-quote FILE        check a deep quote: --key, --ek, --uuid, --nonce [, --group, --pcr, --host-pcr, --extract]; or one
                           in the form of Xen's vTPM: --request, --key, --nonce [, --uuid, --approver, --pcr, --host-pcr,
                           --locality, --extract], or with --ek its proof of a new endorsement key

Options:
  --socket=PATH            the manager's API (default /run/vtpmd/api.sock)
  --tpm-version=VERSION    with create: 1.2 or 2.0 (default 2.0)
  --name=NAME              with create: what to call it, 1 to 64 bytes, need not be unique; with list: only those
  --group=UUID             with create: the group to make it in (default: the store's own); else the group meant
  --approver=FILE          the approver's public key, PEM; verify-quote --request: that of the vTPM's group
  --list=FILE              an approval list that the approver signed (vtpmctl approve)
  --recovery-key=FILE      a public key on P-256, PEM, whose holder can recover the group's key
  --recovery-signature=FILE
                           the approver's signature for it (approve --recovery-key writes it)
  --shared=FILE            ECDH of the recovery key with the group's recovery_challenge (openssl pkeyutl -derive)
  --csr                    with group ca: instead, its certificate request, for a CA of your own to sign
  --set=FILE               with group ca: put that CA's certificate in place, PEM; those above it may follow it
  --key=FILE               approve: the approver's private key, PEM; verify-quote: the group's attestation key, PEM
  --sequence=N             of the list: more than that of the one before
  --epoch=N                of the list (default 1): one more takes away the platforms that it does not name
  --platform=FILE          a platform to approve, as vtpmctl seal --json prints it; may be given several times
  --pcr=BANK:INDEX=HEX     approve: a PCR of one more platform; verify-quote: what a PCR of the vTPM must be
  --host-pcr=BANK:INDEX=HEX
                           what a PCR of the hardware must be; like --pcr it may be given several times
  --label=TEXT             a label of vTPMs that the group admits (default: all); may be given several times
  --out=FILE               where to write the signed list (with --recovery-key also FILE.recovery), or the quote
  --ek=FILE                the vTPM's endorsement key, PEM
  --uuid=UUID              the vTPM that the quote has to be of
  --nonce=HEX              quote: 1 to 64 bytes that whoever is to be shown it chose; verify-quote: what it has to be for
  --pcrs=SELECTION         PCRs of the vTPM to quote: sha256:0,2+sha1:10, or none (default: 0 to 7 of its best bank)
  --host-pcrs=SELECTION    PCRs of the hardware to quote, the same way (default: 0 to 7 of its best bank)
  --request=FILE           what a vTPM was asked in Xen's form: the command's parameters, without authorisation
  --locality=N             at which it was asked that (default 0)
  --extract=PREFIX         write PREFIX.attested, .signature and .qualification, for other tools to check
  --interval=SECONDS       top: how often to look (default 2)
  --once                   top: show it once, as plain text
  --json                   print what the manager answers, for programs
  --yes                    do not ask before deleting or resetting; with backup: replace a file that is there
  --help                   this text
  --version                the program's version

Exit status: 0 done; 64 a command line that makes no sense; 65 a quote that was refused; 66 no such vTPM, group or file;
69 the manager is not there; 73 it exists already; 75 it is in use; 77 you may not; 65, 70, 74 what is stored or the manager
failed: the message says what to do.
)";

namespace {

/// Those with a value.
constexpr auto named = std::to_array<std::string_view>(
    {"socket",  "tpm-version", "name",     "group", "approver", "list", "recovery-key", "recovery-signature",
     "shared",  "key",         "sequence", "epoch", "platform", "pcr",  "host-pcr",     "label",
     "out",     "ek",          "uuid",     "nonce", "extract",  "pcrs", "host-pcrs",    "interval",
     "request", "locality",    "set"});
constexpr auto repeated = std::to_array<std::string_view>({"platform", "pcr", "host-pcr", "label"});
constexpr std::size_t file_limit = 1U << 20U;

/// --name=VALUE or --name VALUE: the value; moves on over a separate one.
std::string value_of(std::string_view name, const std::vector<std::string>& args, std::size_t& at) {
    const std::string& word = args[at];
    if (const std::size_t equals = word.find('='); equals != std::string::npos) {
        return word.substr(equals + 1);
    }
    if (at + 1 == args.size()) {
        fail(EX_USAGE, fmt::format("--{} needs a value; see vtpmctl --help", name));
    }
    return args[++at];
}

void take_option(Options& o, const std::vector<std::string>& args, std::size_t& at) {
    const std::string& word = args[at];
    if (word == "--json") {
        o.json = true;
        return;
    }
    if (word == "--csr") {
        o.csr = true;
        return;
    }
    if (word == "--yes" || word == "-y") {
        o.yes = true;
        return;
    }
    if (word == "--once") {
        o.once = true;
        return;
    }
    const std::string name = word.starts_with("--") ? word.substr(2, word.find('=') - 2) : std::string();
    if (std::ranges::find(named, name) == named.end()) {
        fail(EX_USAGE, fmt::format("there is no option {}; see vtpmctl --help", word));
    }
    std::string value = value_of(name, args, at);
    std::vector<std::string>& kept = o.values[name];
    if (!kept.empty() && std::ranges::find(repeated, name) == repeated.end()) {
        fail(EX_USAGE, fmt::format("--{} is given twice; see vtpmctl --help", name));
    }
    kept.push_back(std::move(value));
}

} // namespace

void fail(int status, std::string message) { throw Failure{status, std::move(message)}; }

std::optional<std::string> Options::one(const std::string& name) const {
    auto it = values.find(name);
    return it == values.end() ? std::nullopt : std::optional(it->second.front());
}

std::string Options::needed(const std::string& name, std::string_view what) const {
    auto value = one(name);
    if (!value) {
        fail(EX_USAGE, fmt::format("{} needs --{}: {}; see vtpmctl --help", words.front(), name, what));
    }
    return *value;
}

std::vector<std::string> Options::all(const std::string& name) const {
    auto it = values.find(name);
    return it == values.end() ? std::vector<std::string>() : it->second;
}

Options parse(const std::vector<std::string>& args) {
    Options o;
    for (std::size_t i = 0; i < args.size(); ++i) {
        if (args[i].starts_with("-")) {
            take_option(o, args, i);
        } else {
            o.words.push_back(args[i]);
        }
    }
    if (auto path = o.one("socket")) {
        o.socket = path->starts_with("unix:") ? path->substr(5) : *path;
    }
    return o;
}

std::string read_file(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    if (!in) {
        fail(EX_NOINPUT, fmt::format("{}: {}; name a file that is there", path, std::strerror(errno)));
    }
    std::string content{std::istreambuf_iterator<char>(in), {}};
    if (in.bad() || content.size() > file_limit) {
        fail(EX_DATAERR,
             fmt::format("{}: it cannot be read, or is larger than {} bytes; is it the right file?", path, file_limit));
    }
    return content;
}

void write_file(const std::string& path, vtpmd::ByteView content) {
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(content.size()));
    out.close();
    if (!out) {
        fail(EX_CANTCREAT, fmt::format("{}: {}; name a file that can be written", path, std::strerror(errno)));
    }
}

} // namespace vtpmctl
