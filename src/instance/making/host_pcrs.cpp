#include "instance/making/host_pcrs.hpp"

#include "tpm/commands.hpp"

namespace vtpmd::instance {

namespace {

constexpr std::uint16_t banks_asked[] = {tpm::alg::sha1, tpm::alg::sha256, tpm::alg::sha384, tpm::alg::sha512};
/// A TPM gives eight values at once: 24 PCRs in four banks are twelve reads. More means that it makes no progress.
constexpr unsigned most_reads = 4 * tpm::pcr_count;

Task<Result<std::vector<PcrPreset>>> fetch_12(proto::ManagerClient& manager, std::vector<unsigned> pcrs) {
    std::vector<PcrPreset> out;
    for (unsigned pcr : pcrs) {
        Bytes command = tpm::pcr_read_command(pcr);
        auto answer = co_await manager.tpm_command(std::move(command));
        if (!answer) {
            co_return std::move(answer).error();
        }
        auto value = tpm::parse_pcr_value(*answer);
        if (!value) {
            co_return in_context(std::move(value).error(), fmt::format("PCR {} of the manager's TPM", pcr));
        }
        out.push_back(PcrPreset{tpm::alg::sha1, pcr, to_bytes(*value)});
    }
    co_return out;
}

/// Takes what an answer has of what is still wanted; false if that is nothing.
bool take(const tpm::PcrReadReply& reply, std::vector<tpm::PcrBank>& wanted, std::vector<PcrPreset>& out) {
    std::size_t next = 0;
    bool progress = false;
    for (const tpm::PcrBank& bank : reply.banks) {
        for (unsigned pcr = 0; pcr < tpm::pcr_count; ++pcr) {
            if ((bank.pcrs >> pcr & 1U) == 0) {
                continue;
            }
            if (next >= reply.digests.size()) {
                return false;
            }
            const Bytes& digest = reply.digests[next++];
            for (tpm::PcrBank& w : wanted) {
                if (w.alg == bank.alg && (w.pcrs >> pcr & 1U) != 0) {
                    w.pcrs &= ~(1U << pcr);
                    out.push_back(PcrPreset{bank.alg, pcr, digest});
                    progress = true;
                }
            }
        }
    }
    return progress;
}

Task<Result<std::vector<PcrPreset>>> fetch_20(proto::ManagerClient& manager, std::vector<unsigned> pcrs) {
    std::uint32_t mask = 0;
    for (unsigned pcr : pcrs) {
        mask |= 1U << pcr;
    }
    std::vector<PcrPreset> out;
    // Bank by bank: a TPM that does not know a bank's algorithm refuses the whole command.
    for (std::uint16_t alg : banks_asked) {
        std::vector<tpm::PcrBank> wanted{{alg, mask}};
        for (unsigned reads = 0; wanted.front().pcrs != 0 && reads < most_reads; ++reads) {
            Bytes command = tpm::pcr_read_command(wanted);
            auto answer = co_await manager.tpm_command(std::move(command));
            if (!answer) {
                co_return std::move(answer).error();
            }
            auto reply = tpm::parse_pcr_read(*answer);
            if (!reply || !take(*reply, wanted, out)) {
                break; // this TPM has not this bank, or not these PCRs in it
            }
        }
    }
    if (out.empty() && mask != 0) {
        co_return make_error(Errc::tpm, "the manager's TPM gave none of the PCRs asked for with --hwinitpcrs");
    }
    co_return out;
}

} // namespace

Task<Result<std::vector<PcrPreset>>> fetch_host_pcrs(proto::ManagerClient& manager, TpmVersion version,
                                                     std::vector<unsigned> pcrs) {
    if (version == TpmVersion::tpm12) {
        return fetch_12(manager, std::move(pcrs));
    }
    return fetch_20(manager, std::move(pcrs));
}

} // namespace vtpmd::instance
