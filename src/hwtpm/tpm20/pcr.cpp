// PCRs of a TPM 2.0: selections, values, and the policy digest over them.
#include "hwtpm/tpm20/tpm20.hpp"

#include "util/wire.hpp"

#include <algorithm>
#include <openssl/evp.h>

namespace vtpmd::hwtpm {

namespace {

constexpr UINT8 select_size = 3; // octets for 24 PCRs (PC Client profile)
constexpr int consistent_reads = 5;

TPMS_PCR_SELECTION to_tpms(const PcrSelection& selection) {
    TPMS_PCR_SELECTION out{};
    out.hash = static_cast<TPMI_ALG_HASH>(selection.bank);
    out.sizeofSelect = select_size;
    for (unsigned pcr : selection.pcrs) {
        out.pcrSelect[pcr / 8] |= static_cast<BYTE>(1U << (pcr % 8));
    }
    return out;
}

bool nothing_selected(const TPML_PCR_SELECTION& list) {
    for (UINT32 i = 0; i < list.count; ++i) {
        for (unsigned k = 0; k < list.pcrSelections[i].sizeofSelect; ++k) {
            if (list.pcrSelections[i].pcrSelect[k] != 0) {
                return false;
            }
        }
    }
    return true;
}

/// Takes what one TPM2_PCR_Read gave; false if its parts do not fit together.
bool take_values(const TPML_PCR_SELECTION& which, const TPML_DIGEST& digests, std::vector<PcrValue>& out) {
    UINT32 next = 0;
    for (UINT32 i = 0; i < which.count; ++i) {
        const TPMS_PCR_SELECTION& s = which.pcrSelections[i];
        for (unsigned pcr = 0; pcr < 8U * s.sizeofSelect; ++pcr) {
            if ((s.pcrSelect[pcr / 8] & (1U << (pcr % 8))) == 0) {
                continue;
            }
            const auto bank = static_cast<HashAlg>(s.hash);
            if (next >= digests.count || digests.digests[next].size != digest_size(bank)) {
                return false;
            }
            out.push_back({bank, pcr, to_bytes(view_of(digests.digests[next].buffer, digests.digests[next].size))});
            ++next;
        }
    }
    return next == digests.count;
}

void remove_selected(TPML_PCR_SELECTION& from, const TPML_PCR_SELECTION& done) {
    for (UINT32 i = 0; i < from.count; ++i) {
        for (UINT32 k = 0; k < done.count; ++k) {
            if (from.pcrSelections[i].hash == done.pcrSelections[k].hash) {
                for (unsigned b = 0; b < select_size; ++b) {
                    from.pcrSelections[i].pcrSelect[b] &= static_cast<BYTE>(~done.pcrSelections[k].pcrSelect[b]);
                }
            }
        }
    }
}

} // namespace

Result<TPML_PCR_SELECTION> to_tpml(const std::vector<PcrSelection>& selections) {
    TPML_PCR_SELECTION out{};
    if (selections.size() > std::size(out.pcrSelections)) {
        return make_error(Errc::too_large, "{} PCR banks in one selection", selections.size());
    }
    for (const PcrSelection& s : selections) {
        if (std::any_of(s.pcrs.begin(), s.pcrs.end(), [](unsigned i) { return i >= pcr_count; })) {
            return make_error(Errc::usage, "{}: PCR indices go from 0 to 23", to_string(s));
        }
        out.pcrSelections[out.count++] = to_tpms(s);
    }
    return out;
}

Result<std::vector<PcrValue>> Tpm20::pcr_read(const std::vector<PcrSelection>& selections) {
    return attempt(Repeat::always, [&] { return pcr_read_once(selections); });
}

Result<std::vector<PcrValue>> Tpm20::pcr_read_once(const std::vector<PcrSelection>& selections) {
    std::vector<PcrSelection> there;
    std::copy_if(selections.begin(), selections.end(), std::back_inserter(there), [&](const PcrSelection& s) {
        return std::find(banks_.begin(), banks_.end(), s.bank) != banks_.end();
    });
    auto wanted = to_tpml(there);
    if (!wanted) {
        return wanted.error();
    }
    // A command returns at most eight digests. All values are to be of one moment; the TPM counts the changes.
    std::vector<PcrValue> out;
    for (int round = 0; round < consistent_reads; ++round) {
        out.clear();
        TPML_PCR_SELECTION left = *wanted;
        UINT32 first_count = 0;
        bool changed = false;
        for (bool first = true; !nothing_selected(left); first = false) {
            UINT32 count = 0;
            TPML_PCR_SELECTION* raw_which = nullptr;
            TPML_DIGEST* raw_values = nullptr;
            TSS2_RC rc = Esys_PCR_Read(esys_->get(), ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &left, &count,
                                       &raw_which, &raw_values);
            EsysPtr<TPML_PCR_SELECTION> which(raw_which);
            EsysPtr<TPML_DIGEST> values(raw_values);
            if (auto r = esys_->check(rc, "TPM2_PCR_Read"); !r) {
                return r.error();
            }
            if (nothing_selected(*which)) {
                break; // the rest does not exist
            }
            if (!take_values(*which, *values, out)) {
                return make_error(Errc::protocol, "TPM2_PCR_Read: digests and selection do not fit together");
            }
            remove_selected(left, *which);
            first_count = first ? count : first_count;
            changed = changed || count != first_count;
        }
        if (!changed) {
            break;
        }
    }
    std::sort(out.begin(), out.end(), [](const PcrValue& a, const PcrValue& b) {
        return std::pair(a.bank, a.index) < std::pair(b.bank, b.index);
    });
    return out;
}

Result<Bytes> Tpm20::pcr_extend(unsigned index, ByteView digest) {
    if (std::find(banks_.begin(), banks_.end(), HashAlg::sha1) == banks_.end()) {
        return make_error(Errc::pcr_mismatch, "this TPM has no sha1 bank of PCRs");
    }
    return attempt(Repeat::if_not_executed, [&]() -> Result<Bytes> {
        TPML_DIGEST_VALUES values{};
        values.count = 1;
        values.digests[0].hashAlg = TPM2_ALG_SHA1;
        std::copy(digest.begin(), digest.end(), reinterpret_cast<std::byte*>(values.digests[0].digest.sha1));
        const TSS2_RC rc =
            Esys_PCR_Extend(esys_->get(), ESYS_TR_PCR0 + index, ESYS_TR_PASSWORD, ESYS_TR_NONE, ESYS_TR_NONE, &values);
        if (auto r = esys_->check(rc, "TPM2_PCR_Extend"); !r) {
            return r.error();
        }
        auto now = pcr_read_once({{.bank = HashAlg::sha1, .pcrs = {index}}});
        if (!now) {
            return now.error();
        }
        return now->size() == 1 ? Result<Bytes>(now->front().digest)
                                : Result<Bytes>(make_error(Errc::pcr_mismatch, "sha1:{} cannot be read", index));
    });
}

} // namespace vtpmd::hwtpm
