"""Stop a thread that neither waits nor checks for a cancellation; its lock is released."""

import desist

index = desist.Lock(name="index")
entered = desist.CancelSource()


def stubborn() -> None:
    with index:
        entered.cancel()
        while True:
            pass


thread = desist.Thread(target=stubborn)
thread.start()
entered.token.wait()

policy = desist.StopPolicy(cooperative=0.05, at_wait=0.05, defer=0.05)
report = thread.kill("it does not respond", policy=policy)
print(report.outcome.name if report.outcome else "still running", "poisoned:", report.poisoned)

try:
    with index:
        pass
except desist.LockPoisoned as poisoned:
    print("left half changed by", poisoned.owner)
with index.repair():
    print("repaired")
assert not index.locked()
