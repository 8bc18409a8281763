"""A supervisor whose processes are words: tests say how far each life is."""

from rtp_jax.errors import FailedPrecondition
from rtp_jax.serving.cluster.supervisor import Launch, Look, NoRoomYet, Phase


class FakeLife:
    """A life that the test leads."""

    pid = 0

    def __init__(self, supervisor: "FakeSupervisor", launch: Launch, number: int):
        self.launch, self.number = launch, number
        self.seen = Look(Phase.STARTING)
        self.times_told_to_end, self.was_killed = 0, False
        self._supervisor = supervisor

    @property
    def was_told_to_end(self) -> bool:
        """True if it should finish."""
        return self.times_told_to_end > 0

    def serve(self) -> None:
        """It has started."""
        self.seen = Look(Phase.SERVING, f"127.0.0.1:{10000 + self.number}")

    def die(self, code: int | None = -9, *words: str) -> None:
        """It ends."""
        self.seen = Look(Phase.ENDED, code=code, last_words=words)

    def look(self) -> Look:
        """Say what the test said."""
        return self.seen

    def end(self) -> None:
        """Note that it should finish."""
        self.times_told_to_end += 1

    def kill(self) -> None:
        """End it."""
        self.was_killed = True
        if self.seen.phase != Phase.ENDED:
            self.die()


class FakeSupervisor:
    """Starts lives, at most `room` at once."""

    def __init__(self, room: int = 1000):
        self.lives: list[FakeLife] = []
        self.room = room

    def start(self, launch: Launch) -> FakeLife:
        """Start one."""
        staying = [life for life in self.living if not life.was_told_to_end]
        if len(staying) < self.room <= len(self.living):
            raise NoRoomYet("others end")
        if len(self.living) >= self.room:
            raise FailedPrecondition("RTPJ-5624 NO_ROOM_HERE: none. Lower it.")
        self.lives.append(FakeLife(self, launch, len(self.lives)))
        return self.lives[-1]

    @property
    def living(self) -> list[FakeLife]:
        """Those that have not ended."""
        return [life for life in self.lives if life.seen.phase != Phase.ENDED]

    def of(self, name: str) -> FakeLife:
        """Find the latest life of a replica."""
        return next(life for life in reversed(self.lives) if life.launch.name == name)

    def names(self) -> list[str]:
        """Name what lives."""
        return sorted(life.launch.name for life in self.living)

    def close(self) -> None:
        """Do nothing."""
