"""The workers of a router: who is there, what they said, and who is told of it.

Owned by one asyncio loop.  Read next: `worker_link.py`, `placing.py`, `members.py`.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Sequence
from pathlib import Path

from grpc import aio

from rtp_jax.engine.info import ModelInfo
from rtp_jax.router.facts import WorkerFacts, WorkerLoad
from rtp_jax.router.router import Router
from rtp_jax.router.settings import RouterSettings
from rtp_jax.serving.auth import read_tokens
from rtp_jax.serving.client_messages import Tls
from rtp_jax.serving.info_messages import model_info_of
from rtp_jax.serving.members import Member
from rtp_jax.serving.placing import Placing
from rtp_jax.serving.quotas import read_quotas
from rtp_jax.serving.route_config import RouteConfig
from rtp_jax.serving.worker_link import Followers, WorkerLink
from rtp_jax.serving.worker_reports import facts_of
from rtp_jax.wire import generation_pb2 as pb

logger = logging.getLogger(__name__)
LOOK_S = 0.1
LINGER_S = 30.0  # a worker that is no member any more may finish for so long, if others are there
ASLEEP_S = 0.5  # longer than this loop is ever held up
INFO_TIMEOUT_S = 5.0
ABORT_TIMEOUT_S = 2.0


class Workers:
    """Connections to all members, and the router that is told what they say."""

    def __init__(self, config: RouteConfig, *, model: str, fingerprint: str):
        """Prepare; `model` and `fingerprint` (empty: not known) are what workers must have."""
        settings = RouterSettings(
            policy=config.policy,
            max_waiting=config.router_max_waiting,
            stale_s=config.worker_silent_s,
            no_worker_s=config.no_worker_s,
            session_slack=config.session_slack,
            quotas=read_quotas(Path(config.quotas)) if config.quotas else {},
        )
        self.placing = Placing(Router(settings))
        self.links: dict[str, WorkerLink] = {}
        self.model = model
        self._fingerprint = fingerprint
        self._silent_s = config.worker_silent_s
        self._token = read_tokens(config.worker_token_file)[0] if config.worker_token_file else None
        self._tls = Tls(ca=config.worker_tls_ca) if config.worker_tls_ca else None
        self._members: dict[str, Member] = {}
        self._follows: dict[str, asyncio.Task] = {}
        self._tasks: set[asyncio.Task] = set()
        self._changed = asyncio.Event()
        for task in (self.placing.run(), self._look()):
            self.spawn(task)

    def set_members(self, members: Iterable[Member]) -> None:
        """Connect to new ones, and let those go that are not there any more: they finish first."""
        before, self._members = self._members, {member.address: member for member in members}
        for address, link in self.links.items():
            if address not in self._members and not link.departing:
                self.spawn(self._depart(link))
        for address, member in self._members.items():
            if address not in self.links:
                self._join(address)
            elif self.links[address].departing or not _same_life(member, before.get(address)):
                self._look_again(self.links[address])
            else:
                self._set_role(self.links[address], member)

    async def model_info(self) -> ModelInfo:
        """Wait for a worker that generates, and ask it for its model."""
        while True:
            for link in [*self.links.values()]:
                if not link.generates:
                    continue
                try:
                    answer = await link.generation.GetModelInfo(
                        pb.GetModelInfoRequest(), timeout=INFO_TIMEOUT_S, metadata=link.metadata
                    )
                except aio.AioRpcError as error:
                    logger.warning("%s does not say its model: %s", link.address, error.details())
                    continue
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise
                    continue  # the worker left meanwhile
                return model_info_of(answer)
            self._changed.clear()
            await self._changed.wait()

    async def abort(self, request_ids: Sequence[str], links: Iterable[WorkerLink] = ()) -> None:
        """Tell workers, or all of them, to end requests; whoever does not answer has none."""
        message = pb.AbortRequest(request_ids=request_ids)
        calls = [
            link.generation.Abort(message, timeout=ABORT_TIMEOUT_S, metadata=link.metadata)
            for link in links or [each for each in self.links.values() if each.facts]
        ]
        await asyncio.gather(*calls, return_exceptions=True)

    def kv_addresses(self, addresses: Sequence[str]) -> list[str]:
        """Say where workers offer pages."""
        links = [self.links[each] for each in addresses if each in self.links]
        facts = [facts_of(link.facts, link.address) for link in links if link.facts]
        return [each.kv_address for each in facts if each.kv_address]

    def num_known_pages(self, address: str) -> int:
        """Count the pages of a worker that the router knows of."""
        router = self.placing.router
        return router.index.num_pages(address) if address in router.workers else 0

    def spawn(self, work: Coroutine) -> None:
        """Run something on the loop until it ends, or `close` cancels it."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End all connections."""
        tasks = [*self._tasks, *self._follows.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in self.links.values()))

    def _followers(self) -> Followers:
        router = self.placing.router

        def next_event(address: str) -> int:
            return router.next_event(address) if address in router.workers else 0

        return Followers(
            facts=self._on_facts,
            load=self._on_load,
            events=router.events,
            next_event=next_event,
            lost=self._on_lost,
        )

    def _on_facts(self, facts: WorkerFacts, fingerprint: str) -> str:
        member = self._members.get(facts.address)
        if member is None:
            return "it is no member any more"
        if facts.model != self.model:
            return f"it serves {facts.model!r} and this router {self.model!r}"
        if self._fingerprint and fingerprint != self._fingerprint:
            return "its model has other weights than this router's folder"
        if member.epoch and member.epoch != facts.epoch:
            return f"it is epoch {facts.epoch}, and {member.epoch} is the member"
        if member.layout and member.layout != facts.layout.hex():
            return (
                f"its KV pages have layout {facts.layout.hex()}, and the member's {member.layout}"
            )
        self.placing.router.add_worker(facts, time.monotonic())
        self._set_role(self.links[facts.address], member)
        logger.info("worker %s is here: role %s, epoch %s", facts.address, facts.role, facts.epoch)
        return ""

    def _on_load(self, address: str, load: WorkerLoad) -> None:
        self.placing.router.report(address, load, time.monotonic())
        self._changed.set()
        self.placing.settle()

    def _on_lost(self, address: str) -> None:
        self.placing.router.remove_worker(address, time.monotonic())
        self.placing.settle()

    def _join(self, address: str) -> None:
        logger.info("worker %s joins", address)
        link = WorkerLink(address, self._followers(), token=self._token, tls=self._tls)
        self.links[address] = link
        self._follows[address] = asyncio.ensure_future(link.run())

    def _set_role(self, link: WorkerLink, member: Member) -> None:
        if link.facts is not None and member.role and member.role != link.facts.role:
            self.spawn(link.set_role(member.role))

    def _look_again(self, link: WorkerLink) -> None:
        """Let a worker say anew who it is: what is wanted of it has changed."""
        self._follows[link.address].cancel()
        self._on_lost(link.address)
        link.departing = False
        self._follows[link.address] = asyncio.ensure_future(link.run())

    async def _depart(self, link: WorkerLink) -> None:
        """Forget a member once it has finished what it has.

        What takes longer than LINGER_S goes elsewhere, once another worker can take it.
        """
        logger.info("worker %s leaves with %d requests", link.address, len(link.attempts))
        self._on_lost(link.address)
        link.depart()
        until_s = time.monotonic() + LINGER_S
        while link.attempts and link.departing:
            if time.monotonic() >= until_s and self._others(link):
                break
            await asyncio.sleep(LOOK_S)
        if not link.departing or self.links.get(link.address) is not link:
            return  # it is a member again, or was one again and left once more
        self.links.pop(link.address)
        follow = self._follows.pop(link.address)
        follow.cancel()
        await asyncio.gather(follow, return_exceptions=True)
        await link.close()

    async def _look(self) -> None:
        """Notice workers that stand still, until cancelled."""
        before_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            if now_s - before_s > LOOK_S + ASLEEP_S:  # it was us: what they said is still unread
                for link in self.links.values():
                    link.heard_s = now_s
            before_s = now_s
            for link in self.links.values():
                link.look(now_s, self._silent_s, others=self._others(link))
            await asyncio.sleep(LOOK_S)

    def _others(self, link: WorkerLink) -> bool:
        """Say whether another worker could take what a worker has."""
        return any(each.generates for each in self.links.values() if each is not link)


def _same_life(one: Member, other: Member | None) -> bool:
    return other is not None and (one.epoch, one.layout) == (other.epoch, other.layout)
