// Deep quotes for vTPMs (quote/deep_quote.hpp): the manager puts together what the hardware TPM signs, from the UUID that the vTPM's
// link is for and from what its instance says of it. It never signs a digest that an instance made of the whole. In the form of
// Xen's manager (quote/old_quote.hpp) an instance gives a digest of its own, and the manager says beside it what is asked for.
#pragma once

#include "manager/groups/groups.hpp"
#include "proto/link/messages.hpp"

namespace vtpmd::manager {

class DeepQuotes {
  public:
    /// All of it outlives the object.
    struct Parts {
        Vault& vault;
        hwtpm::RootOfTrust& root;
        Groups& groups;
    };
    explicit DeepQuotes(Parts parts)
        : parts_(parts) {}

    /// By the key of the group that `vtpm` is in. `request` passed proto::check(). Errc::not_found: no such vTPM; unsupported: its
    /// group is the store's own, which has no key; pcr_mismatch: its group is closed, or was closed meanwhile; usage: a bank of
    /// PCRs that this hardware does not have; else what RootOfTrust::quote() says.
    Task<Result<proto::QuoteReply>> make(Uuid vtpm, proto::QuoteRequest request);
    /// GET_QUOTE: the answer's body. `label` is of the vTPM's peer. `request` passed proto::check(). Errc::unsupported also: the
    /// hardware is not a TPM 1.2, or the approver is asked for and its key is not one of RSA.
    Task<Result<Bytes>> make_old(Uuid vtpm, proto::BootHash label, proto::OldQuoteRequest request);
    /// Whether make() could; the group's UUID. Errors as make() has them.
    [[nodiscard]] Result<Uuid> can_make(const Uuid& vtpm, const std::vector<proto::QuoteSelection>& host_pcrs) const;

  private:
    struct Standing {
        GroupId id = 0;
        Uuid group;
    };
    [[nodiscard]] Result<Standing> standing(const Uuid& vtpm) const;
    [[nodiscard]] Result<std::vector<hwtpm::PcrSelection>>
    selections(const std::vector<proto::QuoteSelection>& asked_for) const;
    struct OldClaims {
        Uuid vtpm;
        proto::BootHash label;
        GroupId group = 0;
    };
    /// 20 bytes a flag.
    [[nodiscard]] Result<Bytes> old_hashes(const OldClaims& claims, std::uint32_t flags) const;

    Parts parts_;
};

} // namespace vtpmd::manager
