#!/usr/bin/python3
"""Two management operations at once, all pairs, on one UUID and one group, from two clients: each is answered, the journal goes
on, and a restart finds what there was."""
import itertools
import os
import threading

import harness
from store_case import Stored

harness.need_root()
VTPMCTL = os.environ["VTPMCTL"]


class Pairs(Stored):
    def begin(self):
        self.manager.start(create=True)
        self.group = harness.new_uuid()
        self.run_command("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", self.path("a.pem"))
        self.run_command("openssl", "pkey", "-in", self.path("a.pem"), "-pubout", "-out", self.path("a.pub"))
        self.lists = []
        for sequence in (1, 2):
            out = self.path(f"list{sequence}")
            self.run_command(VTPMCTL, "approve", f"--key={self.path('a.pem')}", f"--group={self.group}", f"--sequence={sequence}",
                             f"--pcr=sha256:4={'00' * 32}", f"--out={out}")
            with open(out, "rb") as f:
                self.lists.append(f.read().hex())
        with open(self.path("a.pub")) as f:
            self.approver = f.read()

    def make_group(self):
        return self.call("POST", "/v1/groups", {"approver": self.approver, "list": self.lists[0]})

    def operations(self, uuid):
        vtpm, group = f"/v1/vtpms/{uuid}", f"/v1/groups/{self.group}"
        other = harness.new_uuid()
        return {
            "create in the group": lambda: self.call("POST", "/v1/vtpms", {"group": self.group}),
            "create": lambda: self.call("POST", "/v1/vtpms", {"uuid": other}),
            "create it": lambda: self.call("POST", "/v1/vtpms", {"uuid": uuid, "group": self.group}),
            "rename": lambda: self.call("PATCH", vtpm, {"name": "n" * 64}),
            "move": lambda: self.call("PATCH", vtpm, {"group": self.group}),
            "reset": lambda: self.call("POST", vtpm + "/reset"),
            "delete": lambda: self.call("DELETE", vtpm),
            "save": lambda: (200 if self.save(uuid) else 409, None),
            "delete the group": lambda: self.call("DELETE", group),
            "make the group": self.make_group,
            "update the group": lambda: self.call("POST", group + "/update", {"list": self.lists[1]}),
            "the group's CA": lambda: self.call("GET", group + "/ca"),
            "backup": lambda: self.call("POST", "/v1/backup"),
        }

    def test_all_pairs(self):
        self.begin()
        names = list(self.operations(harness.new_uuid()))
        pairs = list(itertools.combinations_with_replacement(range(len(names)), 2))
        self.assertGreater(len(pairs), 80)
        statuses = set()
        for number, pair in enumerate(pairs):
            if self.group not in [g["uuid"] for g in self.must("GET", "/v1/groups")["groups"]]:
                self.assertIn(self.make_group()[0], (200, 201))
            uuid = harness.new_uuid()
            if names[pair[0]] != "create it" and names[pair[1]] != "create it":
                self.must("POST", "/v1/vtpms", {"uuid": uuid})
            clients = [list(self.operations(uuid).values())[i] for i in (pair if number % 2 else reversed(pair))]
            outcomes = [None, None]
            together = threading.Barrier(2)

            def client(i):
                together.wait()
                outcomes[i] = clients[i]()[0]
            threads = [threading.Thread(target=client, args=(i,)) for i in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with self.subTest(first=names[pair[0]], second=names[pair[1]]):
                for outcome in outcomes:
                    self.assertIsNotNone(outcome)
                    self.assertLess(outcome, 500)
                statuses.update(outcomes)
                self.assertEqual(self.must("GET", "/v1/host")["trouble"], "")
                # What is empty makes room for the next round.
                for vtpm in self.must("GET", "/v1/vtpms")["vtpms"]:
                    self.call("DELETE", f"/v1/vtpms/{vtpm['uuid']}")
            if number % 15 == 14 or number == len(pairs) - 1:
                self.must("POST", "/v1/vtpms", {"name": "stays"})
                before = self.everything()
                self.restart()
                self.assertEqual(self.everything()["vtpms"], before["vtpms"])
                self.assertEqual([g["uuid"] for g in self.everything()["groups"]], [g["uuid"] for g in before["groups"]])
        self.assertTrue(statuses & {404, 409, 410}, statuses)  # they met
        self.assertNotIn("the journal stops", self.manager.process.log())

    def race(self, others, rounds):
        self.begin()
        for _ in range(rounds):
            self.make_group()
            calls = [lambda: self.call("DELETE", f"/v1/groups/{self.group}"), *others]
            threads = [threading.Thread(target=call) for call in calls]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for vtpm in self.must("GET", "/v1/vtpms")["vtpms"]:
                self.call("DELETE", f"/v1/vtpms/{vtpm['uuid']}")
        before = self.everything()
        self.restart()
        self.assertEqual(len(self.everything()["groups"]), len(before["groups"]))

    def test_a_group_is_deleted_while_vtpms_are_made_in_it(self):
        self.race([lambda: self.call("POST", "/v1/vtpms", {"group": self.group})] * 3, 20)

    def test_a_group_is_deleted_while_its_ca_is_asked_for(self):
        self.race([lambda: self.call("GET", f"/v1/groups/{self.group}/ca")] * 3, 20)


if __name__ == "__main__":
    harness.main()
