// Management in the old protocol of Xen's manager (proto/vtpmmgr/management.hpp): what the administrator's vTPM asks is done to the
// same groups and vTPMs that our own management has. Who is the administrator is the key service's to say.
//
// Other than Xen's manager: a group with vTPMs is not deleted (there its vTPMs went along, with all they held); a list must be
// newer than the present one (there the same sequence number was taken again); a vTPM that was deleted leaves a tombstone.
#pragma once

#include "manager/groups/groups.hpp"
#include "manager/links/key_service.hpp"

namespace vtpmd::manager {

class Administration {
  public:
    /// All of it outlives this.
    struct Parts {
        Vault& vault;
        Groups& groups;
        KeyService& service;
        hwtpm::RootOfTrust& root;
        std::function<Task<Result<void>>(Uuid)> remove_vtpm; ///< Control::remove()
    };
    struct Options {
        std::optional<Uuid> admin;
        TpmVersion new_vtpms = TpmVersion::tpm12; ///< what VTPM_NEW registers: it does not say
    };
    Administration(Options options, Parts parts);

    /// A whole frame of tag 0x01C2: the answer's body. What it changed is durable. Errors of parse(), and of what is asked for.
    Task<Result<Bytes>> run(Bytes frame);

  private:
    Task<Result<Bytes>> answer(proto::management::GroupList r);
    Task<Result<Bytes>> answer(proto::management::GroupNew r);
    Task<Result<Bytes>> answer(proto::management::GroupDel r);
    Task<Result<Bytes>> answer(proto::management::GroupActivate r);
    Task<Result<Bytes>> answer(proto::management::GroupRegister r);
    Task<Result<Bytes>> answer(proto::management::GroupUpdate r);
    Task<Result<Bytes>> answer(proto::management::GroupShow r);
    Task<Result<Bytes>> answer(proto::management::GroupQuote r);
    Task<Result<Bytes>> answer(proto::management::GroupRecover1 r);
    Task<Result<Bytes>> answer(proto::management::GroupRecover2 r);
    Task<Result<Bytes>> answer(proto::management::VtpmList r);
    Task<Result<Bytes>> answer(proto::management::VtpmShow r);
    Task<Result<Bytes>> answer(proto::management::VtpmEdit r);
    Task<Result<Bytes>> answer(proto::management::VtpmNew r);
    Task<Result<Bytes>> answer(proto::management::VtpmDel r);

    /// By that group's attestation key, over 20 bytes. In the answer's form: the signature is RSA's bytes, and `attested` is empty
    /// on a TPM 1.2.
    Task<Result<hwtpm::Quote>> quote_by(GroupId id, Bytes data, proto::management::PcrMask pcrs);
    /// The group whose attestation key a TPM_KEY names by its modulus. Errc::not_found.
    [[nodiscard]] Result<GroupId> group_of_key(ByteView tpm_key) const;
    /// A group's number is its place in the list of groups. Errc::not_found.
    [[nodiscard]] Result<GroupId> group_at(std::uint32_t number) const;
    [[nodiscard]] std::uint32_t number_of(GroupId id) const;

    const Options options_;
    Parts parts_;
};

} // namespace vtpmd::manager
