"""Equal identities mean equal KV: what changes KV changes the identity, and nothing else does."""

import pytest

from rtp_jax.cache.page_identity import PageChain, PageIdentity

SAME = {"page_size": 4, "model_epoch": "weights", "kv_scheme": "float32"}
IDS = list(range(12))


def keys(ids=IDS, key=b"key", root=None, **changes) -> list[bytes]:
    identity = PageIdentity(key, **(SAME | changes))
    chain = PageChain(identity, identity.root(**(root or {})))
    chain.extend(ids)
    return chain.keys


def test_it_is_stable_between_processes_and_releases():
    assert [key.hex() for key in keys()] == [
        "2847ca85a9967a49c1ea3f49ec27ae19",
        "cb4da4d3d251adb1b0c4baa7b13156b8",
        "d40cb1d42cc0f2178217985a7828d9ac",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"key": b"other"},
        {"key": b"long" * 40},
        {"model_epoch": "other"},
        {"kv_scheme": "int8"},
        {"root": {"cache_salt": "tenant"}},
        {"root": {"adapter": "lora"}},
        {"root": {"adapter": "lora", "adapter_version": "2"}},
        {"ids": [1, *IDS[1:]]},
    ],
)
def test_everything_that_changes_kv_changes_every_page(change):
    assert set(keys(**change)).isdisjoint(keys())


def test_pages_of_another_size_are_others():
    assert set(keys(page_size=2)).isdisjoint(keys())


def test_a_page_depends_on_all_tokens_before_it_and_none_after():
    changed = keys([*IDS[:5], 99, *IDS[6:]])
    assert changed[0] == keys()[0]
    assert changed[1] != keys()[1]
    assert changed[2] != keys()[2]


def test_fields_do_not_run_into_each_other():
    assert keys(model_epoch="ab", kv_scheme="c") != keys(model_epoch="a", kv_scheme="bc")
    roots = [{"adapter": "x", "adapter_version": ""}, {"adapter": "", "adapter_version": "x"}]
    assert keys(root=roots[0]) != keys(root=roots[1])


def test_equal_ids_on_consecutive_pages_are_different_pages():
    assert len(set(keys([7] * 12))) == 3


def test_a_chain_grows_page_by_page_and_copies_go_on_alone():
    identity = PageIdentity(b"key", **SAME)
    chain = PageChain(identity, identity.root())
    chain.extend(IDS[:4])
    other = chain.copy()
    chain.extend(IDS[4:])
    other.extend([9, 9, 9, 9])
    assert chain.keys == keys()
    assert len(other) == 2
    assert other.keys[0] == chain.keys[0]
    assert other.keys[1] != chain.keys[1]


def test_a_part_of_a_page_has_no_identity():
    identity = PageIdentity(b"key", **SAME)
    with pytest.raises(AssertionError, match="no whole pages"):
        PageChain(identity, identity.root()).extend([1, 2, 3])


def test_large_token_ids_are_told_apart():
    assert keys([2**31 - 1] * 4) != keys([2**31 - 2] * 4)
