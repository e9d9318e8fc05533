#include "commands.hpp"
#include "inputs.hpp"
#include "manager/groups/approval_list.hpp"
#include "tpm/pcr.hpp"
#include "tpm/public_key.hpp"
#include "tpm/sha1.hpp"
#include "util/openssl_ptr.hpp"
#include "util/text.hpp"

#include <algorithm>
#include <boost/json.hpp>
#include <openssl/pem.h>

namespace vtpmctl {

using namespace vtpmd;

namespace {

/// The approver's private key. OpenSSL reads it (and asks for its password), so that it is nowhere in our memory.
class Signer {
  public:
    explicit Signer(const std::string& path) {
        const Bio in(BIO_new_file(path.c_str(), "r"));
        key_.reset(in ? PEM_read_bio_PrivateKey(in.get(), nullptr, nullptr, nullptr) : nullptr);
        if (!key_) {
            fail(EX_NOINPUT, fmt::format("--key={}: no private key in PEM can be read there; openssl genpkey "
                                         "-algorithm EC -pkeyopt ec_paramgen_curve:P-256 makes one",
                                         path));
        }
    }
    /// PKCS #1 v1.5, or ECDSA as DER, with SHA-256.
    [[nodiscard]] Bytes sign(ByteView message) const {
        const DigestContext context(EVP_MD_CTX_new());
        std::size_t size = 0;
        if (!context || EVP_DigestSignInit(context.get(), nullptr, EVP_sha256(), nullptr, key_.get()) != 1 ||
            EVP_DigestSign(context.get(), nullptr, &size, uchar_ptr(message), message.size()) != 1) {
            fail(EX_DATAERR, "--key: it does not sign with SHA-256; use an RSA-2048 or a P-256 key");
        }
        Bytes out(size);
        if (EVP_DigestSign(context.get(), uchar_ptr(MutByteView(out)), &size, uchar_ptr(message), message.size()) !=
            1) {
            fail(EX_SOFTWARE, "OpenSSL could not sign");
        }
        out.resize(size);
        return out;
    }

  private:
    hwtpm::Pkey key_;
};

hwtpm::Approval platform_of(std::vector<hwtpm::PcrValue> pcrs, const std::string& what) {
    std::ranges::sort(pcrs, {}, &hwtpm::PcrValue::index);
    hwtpm::Approval out;
    out.selection.bank = pcrs.empty() ? hwtpm::HashAlg::sha256 : pcrs.front().bank;
    for (const hwtpm::PcrValue& v : pcrs) {
        if (v.bank != out.selection.bank || (!out.selection.pcrs.empty() && out.selection.pcrs.back() == v.index)) {
            fail(EX_USAGE, what + ": the PCRs of one platform are of one bank, each once");
        }
        out.selection.pcrs.push_back(v.index);
    }
    if (pcrs.empty()) {
        fail(EX_USAGE, what + ": it names no PCRs, and would approve every platform; give them with --pcr");
    }
    out.values = std::move(pcrs);
    return out;
}

/// As vtpmctl seal --json prints it.
std::vector<hwtpm::PcrValue> pcrs_of_file(const std::string& path) {
    namespace json = boost::json;
    boost::system::error_code ec;
    const json::value v = json::parse(read_file(path), ec);
    const json::value* pcrs = !ec && v.is_object() ? v.get_object().if_contains("pcrs") : nullptr;
    std::vector<hwtpm::PcrValue> out;
    if (pcrs == nullptr || !pcrs->is_array()) {
        fail(EX_DATAERR, path + ": expected the PCRs of a platform, as vtpmctl seal --json prints them");
    }
    Options listed{.command = "approve"};
    for (const json::value& p : pcrs->get_array()) {
        const json::object& o = p.as_object();
        listed.values["pcr"].push_back(fmt::format("{}:{}={}", std::string_view(o.at("bank").as_string()),
                                                   o.at("index").to_number<unsigned>(),
                                                   std::string_view(o.at("value").as_string())));
    }
    return pcrs_of(listed, "pcr");
}

std::uint64_t number_of(const std::string& text, const std::string& name) {
    const auto n = must(parse_number(text, ~std::uint64_t{0}), "--" + name);
    if (n == 0) {
        fail(EX_USAGE, fmt::format("--{}: a number from 1 on", name));
    }
    return n;
}

} // namespace

void approve(const Options& o) {
    manager::ApprovalList list;
    list.group = must(parse_uuid(o.needed("group", "the group's UUID; uuidgen makes one for a new group")), "--group");
    list.sequence = number_of(o.needed("sequence", "1 for the first list, then one more each time"), "sequence");
    list.epoch = number_of(o.one("epoch").value_or("1"), "epoch");
    const std::string out = o.needed("out", "where to write the list");
    for (const std::string& path : o.all("platform")) {
        list.platforms.push_back(platform_of(pcrs_of_file(path), path));
    }
    if (!o.all("pcr").empty()) {
        list.platforms.push_back(platform_of(pcrs_of(o, "pcr"), "--pcr"));
    }
    for (const std::string& label : o.all("label")) {
        list.labels.push_back(must(tpm::sha1({as_bytes(label)}), "--label", EX_SOFTWARE));
    }
    const Signer signer(o.needed("key", "the approver's private key"));
    for (hwtpm::Approval& p : list.platforms) {
        const Bytes reference = manager::reference_of(list.group, list.epoch);
        p.signature = signer.sign(must(hwtpm::approval_message(p.selection, p.values, reference), "a platform"));
    }
    list.signature = signer.sign(manager::encode_for_signing(list));
    write_file(out, manager::encode(list));
    if (o.one("recovery-key")) {
        const Bytes recovery = public_key_of(o, "recovery-key", "a public key on P-256");
        write_file(out + ".recovery", signer.sign(manager::recovery_message(list.group, recovery)));
    }
    fmt::print("{}: list {} (epoch {}) of group {}: {} platforms, {} labels\n", out, list.sequence, list.epoch,
               list.group, list.platforms.size(), list.labels.size());
}

} // namespace vtpmctl
