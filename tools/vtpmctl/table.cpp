#include "table.hpp"

#include "commands.hpp"

namespace vtpmctl {

/// Apart from the other files, which call Boost's namespace json: a unity build compiles them with this one.
namespace table {
namespace {

constexpr Words nothing{.shown = "", .least = 0, .most = 0, .otherwise = "takes no argument"};
constexpr Words one_vtpm{
    .shown = "VTPM", .least = 1, .most = 1, .otherwise = "needs a vTPM's UUID or name; vtpmctl list shows them"};
constexpr Words one_group{
    .shown = "GROUP", .least = 1, .most = 1, .otherwise = "needs one UUID; vtpmctl group list shows them"};

constexpr Option json{.name = "json", .value = "", .help = "print what the manager answers, for programs"};
constexpr Option yes{.name = "yes", .value = "", .help = "do not ask first", .letter = 'y'};

std::vector<Command> vtpm_rows() {
    return {
        {Section::vtpms,
         "list",
         {.shown = "", .least = 0, .most = 0, .otherwise = "takes no argument but --name and --group"},
         "all vTPMs, or those with --name or in --group",
         {{"name", "NAME", "only those with this name"}, {"group", "UUID", "only those of this group"}, json},
         list},
        {Section::vtpms, "show", one_vtpm, "one vTPM", {json}, show},
        {Section::vtpms,
         "create",
         {.shown = "[UUID]", .least = 0, .most = 1, .otherwise = "takes one UUID at most"},
         "register a new vTPM; a UUID is made up if none is given",
         {{"tpm-version", "VERSION", "1.2 or 2.0 (default 2.0)"},
          {"name", "NAME", "what to call it, 1 to 64 bytes, need not be unique"},
          {"group", "UUID", "the group to make it in (default: the store's own)"},
          {"user", "USER", "who may open it besides root (default: nobody)"},
          json},
         create},
        {Section::vtpms,
         "rename",
         {.shown = "VTPM NAME",
          .least = 2,
          .most = 2,
          .otherwise = "needs a vTPM's UUID or name, and its new name; vtpmctl list shows them"},
         "call it so; '' takes its name away",
         {json},
         rename},
        {Section::vtpms,
         "chown",
         {.shown = "VTPM USER",
          .least = 2,
          .most = 2,
          .otherwise = "needs a vTPM's UUID or name, and a user of this host; vtpmctl list shows the vTPMs"},
         "this user may open it from now on; '' takes that away",
         {json},
         chown},
        {Section::vtpms,
         "move",
         one_vtpm,
         "to the group --group, as long as it has saved nothing",
         {{"group", "UUID", "the group that it goes to", true}, json},
         move},
        {Section::vtpms,
         "start",
         one_vtpm,
         "keep an instance running for it, until it is stopped",
         {{"once", "", "not again after the manager or the host was restarted"},
          {"wait", "", "until it serves its guest; says why it does not"},
          {"timeout", "SECONDS", "with --wait: how long, 1 to 100 (default 60)"},
          json},
         start},
        {Section::vtpms,
         "stop",
         {.shown = "[VTPM]", .least = 0, .most = 1, .otherwise = "needs a vTPM's UUID or name, or --all"},
         "end its instance in good order, whoever started it",
         {{"all", "", "all that the manager keeps running"},
          {"keep-autostart", "", "what was remembered of its start stays: it runs again with the next manager"},
          json},
         stop},
        {Section::vtpms,
         "autostart",
         {.shown = "VTPM on|off", .least = 2, .most = 2, .otherwise = "needs a vTPM's UUID or name, and on or off"},
         "whether it runs whenever the manager does; starts and stops nothing now",
         {json},
         autostart},
        {Section::vtpms,
         "reset",
         one_vtpm,
         "reset it to factory: a fresh TPM at its next start, the old state does not come back",
         {yes, json},
         reset},
        {Section::vtpms,
         "delete",
         one_vtpm,
         "delete it for good; no copy of it will be accepted again",
         {yes, json},
         remove},
        {Section::vtpms,
         "quote",
         one_vtpm,
         "a deep quote of a vTPM that runs",
         {{"nonce", "HEX", "1 to 64 bytes that whoever is to be shown the quote chose, hexadecimal", true},
          {"out", "FILE", "the file to write the quote to", true},
          {"pcrs", "SELECTION", "PCRs of the vTPM: sha256:0,2+sha1:10, or none (default: 0 to 7 of its best bank)"},
          {"host-pcrs", "SELECTION", "PCRs of the hardware, the same way (default: 0 to 7 of its best bank)"},
          json},
         quote},
    };
}

std::vector<Command> group_rows() {
    return {
        {Section::groups, "group list", nothing, "all groups", {json}, group_list},
        {Section::groups, "group show", one_group, "one group, with its approval list and keys", {json}, group_show},
        {Section::groups,
         "group create",
         {.shown = "", .least = 0, .most = 0, .otherwise = "takes no UUID: the approval list names it"},
         "make a group for an approver",
         {{"approver", "FILE", "the approver's public key, PEM", true},
          {"list", "FILE", "the first approval list, signed (vtpmctl approve)", true},
          {"recovery-key", "FILE", "a public key on P-256, PEM, whose holder can recover the group's key"},
          {"recovery-signature", "FILE", "the approver's signature for it (approve --recovery-key writes it)"},
          json},
         group_create},
        {Section::groups,
         "group update",
         one_group,
         "put a newer approval list in the place of the present one",
         {{"list", "FILE", "the newer approval list (vtpmctl approve)", true}, json},
         group_update},
        {Section::groups,
         "group recover",
         one_group,
         "its key, from its approver, after the hardware TPM was replaced",
         {{"shared", "FILE", "ECDH of the recovery key with the group's recovery_challenge (openssl pkeyutl -derive)",
           true},
          json},
         group_recover},
        {Section::groups,
         "group ca",
         one_group,
         "the CA of its vTPMs' endorsement keys: its certificates in PEM",
         {{"csr", "", "instead, its certificate request, for a CA of your own to sign"},
          {"set", "FILE", "put that CA's certificate in place, PEM; those above it may follow it"},
          json},
         group_ca},
        {Section::groups, "group delete", one_group, "delete a group that has no vTPMs", {yes, json}, group_delete},
    };
}

std::vector<Command> host_rows() {
    return {
        {Section::host, "status", nothing, "the manager, its store and its hardware TPM", {json}, status},
        {Section::host, "seal", nothing, "what the store is sealed to, and the PCRs as they are", {json}, seal},
        {Section::host,
         "freshness",
         nothing,
         "rollback protection and the wear of the TPM's counter",
         {json},
         freshness},
        {Section::host, "metrics", nothing, "figures in Prometheus' text format", {}, metrics},
        {Section::host,
         "top",
         nothing,
         "a live view, the busiest vTPMs first; q ends it",
         {{"interval", "SECONDS", "how often to look (default 2)"},
          {"once", "", "show it once, as plain text"},
          {"json", "", "with --once: print what the manager answers, for programs"}},
         live_view},
        {Section::host,
         "backup",
         {.shown = "FILE", .least = 1, .most = 1, .otherwise = "needs the name of one file"},
         "a copy of the manager's store, which goes on meanwhile",
         {{"yes", "", "replace a backup that is there; anything else is never replaced", false, false, 'y'},
          {"verify", "",
           "instead, look what that file is beside the store: the newest, older or a fork; nothing is changed"},
          json},
         make_backup},
        {Section::host,
         "recovery list",
         nothing,
         "the keys that open the store without the TPM",
         {json},
         recovery_list},
        {Section::host,
         "recovery add",
         {.shown = "FILE", .least = 1, .most = 1, .otherwise = "needs the name of one file, which must not be there"},
         "make another, into FILE, to be kept off this host",
         {{"label", "TEXT", "what to call it: who keeps it, where"}, json},
         recovery_add},
        {Section::host,
         "recovery remove",
         {.shown = "ID", .least = 1, .most = 1, .otherwise = "needs one key's ID; vtpmctl recovery list shows them"},
         "a key opens the store no more",
         {yes, json},
         recovery_remove},
        {Section::host,
         "store grow",
         {.shown = "[SIZE]", .least = 0, .most = 1, .otherwise = "needs the size that the store is to have"},
         "make the manager's store larger, in use: bytes, or with K, M or G; all of a block device if none is given",
         {json},
         store_grow},
    };
}

std::vector<Command> file_rows() {
    return {
        {Section::files,
         "approve",
         nothing,
         "sign an approval list, as a group's approver",
         {{"key", "FILE", "the approver's private key, PEM", true},
          {"group", "UUID", "the group's UUID; uuidgen makes one for a new group", true},
          {"sequence", "N", "of the list: 1 for the first, then more than that of the one before", true},
          {"out", "FILE", "where to write the signed list (with --recovery-key also FILE.recovery)", true},
          {"epoch", "N", "of the list (default 1): one more takes away the platforms that it does not name"},
          {"platform", "FILE", "a platform to approve, as vtpmctl seal --json prints it; may be given several times",
           false, true},
          {"pcr", "BANK:INDEX=HEX", "a PCR of one more platform; may be given several times", false, true},
          {"label", "TEXT", "a label of vTPMs that the group admits (default: all); may be given several times", false,
           true},
          {"recovery-key", "FILE", "a public key on P-256, PEM, whose holder can recover the group's key"}},
         approve},
        {Section::files,
         "verify-quote",
         {.shown = "FILE", .least = 1, .most = 1, .otherwise = "needs one file, with the quote"},
         "check a deep quote; or with --request one in the form of Xen's vTPM, or with --request and --ek that one's "
         "proof of a new endorsement key",
         {{"key", "FILE", "the group's attestation key, PEM, which is trusted", true},
          {"nonce", "HEX", "the nonce that the quote has to be for, 1 to 64 bytes", true},
          {"ek", "FILE", "the vTPM's endorsement key, PEM; needed without --request"},
          {"uuid", "UUID", "the vTPM that the quote has to be of; needed without --request"},
          {"group", "UUID", "without --request: the group that it has to be of"},
          {"pcr", "BANK:INDEX=HEX", "what a PCR of the vTPM must be; may be given several times", false, true},
          {"host-pcr", "BANK:INDEX=HEX", "what a PCR of the hardware must be; may be given several times", false, true},
          {"request", "FILE", "what a vTPM was asked in Xen's form: the command's parameters, without authorisation"},
          {"locality", "N", "with --request: at which it was asked that (default 0)"},
          {"approver", "FILE", "with --request: the public key of the approver of the vTPM's group, PEM"},
          {"extract", "PREFIX", "write PREFIX.attested, .signature and .qualification, for other tools to check"},
          {"json", "", "print what was verified, for programs"}},
         verify_quote},
    };
}

} // namespace
} // namespace table

const std::vector<Command>& commands() {
    static const std::vector<Command> all = [] {
        std::vector<Command> rows;
        for (std::vector<Command> part :
             {table::vtpm_rows(), table::group_rows(), table::host_rows(), table::file_rows()}) {
            rows.insert(rows.end(), part.begin(), part.end());
        }
        return rows;
    }();
    return all;
}

const std::vector<Option>& common_options() {
    static const std::vector<Option> all{
        {"socket", "PATH", "the manager's API (default /run/vtpmd/api.sock)"},
        {"help", "", "this text; behind a command, that command's", false, false, 'h'},
    };
    return all;
}

} // namespace vtpmctl
