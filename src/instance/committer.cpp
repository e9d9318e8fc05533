#include "instance/committer.hpp"

#include "instance/state_blob.hpp"

namespace vtpmd::instance {

Task<Result<void>> Committer::settle() {
    while (dirty()) {
        if (!in_doubt_) {
            auto written = co_await write_slot();
            if (!written) {
                ++counters_.commit_failures;
                co_return written;
            }
        }
        auto accepted = co_await offer_key();
        if (!accepted) {
            ++counters_.commit_failures;
            co_return accepted;
        }
        ++counters_.commits;
    }
    co_return Result<void>{};
}

Task<Result<void>> Committer::write_slot() {
    auto staged = engine_.take_staged();
    if (!staged) {
        co_return Result<void>{};
    }
    // Until the slot is written and its key kept, the change exists in memory alone: leaving here, by an error or because
    // the task is cancelled, stages it again.
    struct Restage {
        Committer& self;
        bool armed = true;
        ~Restage() {
            if (armed) {
                self.image_.reject(); // its key was never offered
                self.engine_.staged_failed();
            }
        }
    } restage{*this};
    if (staged->permanent.empty()) {
        co_return make_error(Errc::corrupt, "there is no permanent state to save"); // never: it would be lost
    }
    staged->volatile_state = volatile_.clone();
    staged->unconfirmed = unconfirmed_.clone();
    staged->given_out = given_out_.clone();
    const SecretBytes blob = encode_state(engine_.version(), *staged);
    auto key = co_await image_.prepare(blob.view());
    if (!key) {
        co_return in_context(std::move(key).error(), "saving the state");
    }
    in_doubt_ = std::move(*key);
    restage.armed = false;
    co_return Result<void>{};
}

Task<Result<void>> Committer::offer_key() {
    auto saved = co_await manager_.save_hash_key(in_doubt_->view());
    if (!saved) {
        co_return in_context(std::move(saved).error(), "giving the state's key to the manager");
    }
    in_doubt_.reset();
    if (!engine_.has_staged()) {
        engine_.staged_is_durable();
    }
    auto marked = co_await image_.accept();
    if (!marked) {
        // The slot is valid, but the image does not say yet that it has state: the next save writes that again.
        engine_.staged_failed();
        co_return in_context(std::move(marked).error(), "marking the image");
    }
    co_return Result<void>{};
}

void Committer::keep_volatile(SecretBytes state) {
    volatile_ = std::move(state);
    engine_.staged_failed(); // the same permanent state has to be written again, with this beside it
}

void Committer::keep_given_out(SecretBytes given) {
    given_out_ = std::move(given);
    engine_.staged_failed();
}

void Committer::keep_unconfirmed(SecretBytes token) {
    unconfirmed_ = std::move(token);
    engine_.staged_failed();
}

} // namespace vtpmd::instance
