import unittest

from keep import Cache


class LruTest(unittest.TestCase):
    def test_get_and_put(self):
        cache = Cache()
        cache.put("a", 1)
        self.assertEqual((cache.get("a"), cache.get("b"), cache.get("b", 7)), (1, None, 7))

    def test_the_least_recently_used_goes(self):
        cache = Cache(capacity=2)
        cache.put("a", 1)
        cache.put("b", 2)
        cache.get("a")
        cache.put("c", 3)
        self.assertEqual(cache.keys(), ["a", "c"])

    def test_replacing_counts_as_a_use(self):
        cache = Cache(capacity=2)
        cache.put("a", 1)
        cache.put("b", 2)
        cache.put("a", 3)
        self.assertEqual((cache.keys(), cache.get("a")), (["b", "a"], 3))

    def test_asking_is_no_use(self):
        cache = Cache(capacity=2)
        cache.put("a", 1)
        cache.put("b", 2)
        self.assertIs(cache.has("a"), True)
        cache.put("c", 3)
        self.assertEqual(cache.keys(), ["b", "c"])

    def test_none_is_a_value(self):
        cache = Cache()
        cache.put("a", None)
        self.assertIsNone(cache.get("a", 5))
        self.assertIs(cache.has("a"), True)

    def test_delete(self):
        cache = Cache()
        cache.put("a", 1)
        self.assertEqual((cache.delete("a"), cache.delete("a")), (True, False))
        self.assertEqual(len(cache), 0)

    def test_clear(self):
        gone = []
        cache = Cache(capacity=2, on_evict=lambda *entry: gone.append(entry))
        cache.put("a", 1, weight=2)
        cache.clear()
        self.assertEqual((len(cache), cache.weight, gone), (0, 0, []))
        self.assertIs(cache.put("b", 1, weight=2), True)
        self.assertEqual(gone, [])

    def test_bad_settings(self):
        for settings in ({"capacity": 0}, {"ttl": 0}, {"ttl": -1}):
            with self.assertRaises(ValueError):
                Cache(**settings)


class WeightTest(unittest.TestCase):
    def setUp(self):
        self.cache = Cache(capacity=10)

    def test_heavy_entries_push_out_several(self):
        for key in "abc":
            self.cache.put(key, key, weight=3)
        self.assertIs(self.cache.put("d", "d", weight=5), True)
        self.assertEqual((self.cache.keys(), self.cache.weight), (["c", "d"], 8))

    def test_too_heavy(self):
        self.cache.put("a", 1)
        self.cache.put("b", 2)
        self.assertIs(self.cache.put("a", 3, weight=11), False)
        self.assertEqual(self.cache.keys(), ["b"])

    def test_replacing_frees_the_old_weight(self):
        self.cache.put("a", 1, weight=6)
        self.cache.put("b", 2, weight=4)
        self.cache.put("a", 3, weight=5)
        self.assertEqual((self.cache.keys(), self.cache.weight), (["b", "a"], 9))

    def test_deleting_frees_the_weight(self):
        self.cache.put("a", 1, weight=10)
        self.cache.delete("a")
        self.cache.put("b", 2, weight=5)
        self.cache.put("c", 3, weight=5)
        self.assertEqual(self.cache.keys(), ["b", "c"])

    def test_a_weight_is_positive(self):
        with self.assertRaises(ValueError):
            self.cache.put("a", 1, weight=0)


class TimeTest(unittest.TestCase):
    def setUp(self):
        self.now = 100.0
        self.gone = []
        self.cache = Cache(capacity=3, ttl=10, clock=lambda: self.now, on_evict=lambda *entry: self.gone.append(entry))

    def test_entries_expire(self):
        self.cache.put("a", 1)
        self.now += 9.5
        self.assertEqual(self.cache.get("a"), 1)
        self.now += 0.5
        self.assertEqual((self.cache.get("a"), len(self.cache)), (None, 0))

    def test_an_entry_may_have_its_own_time(self):
        self.cache.put("a", 1, ttl=3)
        self.cache.put("b", 2, ttl=30)
        self.now += 5
        self.assertEqual(self.cache.keys(), ["b"])
        self.now += 20
        self.assertEqual(self.cache.keys(), ["b"])

    def test_using_does_not_prolong(self):
        self.cache.put("a", 1)
        self.now += 6
        self.cache.get("a")
        self.now += 6
        self.assertIs(self.cache.has("a"), False)

    def test_touching_does(self):
        self.cache.put("a", 1)
        self.now += 6
        self.assertIs(self.cache.touch("a"), True)
        self.now += 9
        self.assertEqual(self.cache.get("a"), 1)
        self.now += 1
        self.assertIs(self.cache.touch("a"), False)

    def test_touching_is_a_use(self):
        for key in "abc":
            self.cache.put(key, key)
        self.cache.touch("a", ttl=50)
        self.cache.put("d", "d")
        self.assertEqual(self.cache.keys(), ["c", "a", "d"])
        self.now += 49
        self.assertEqual(self.cache.keys(), ["a"])

    def test_the_dead_go_before_the_living(self):
        self.cache.put("a", 1)
        self.cache.put("b", 2, ttl=2)
        self.cache.put("c", 3)
        self.now += 3
        self.cache.put("d", 4)
        self.assertEqual(self.cache.keys(), ["a", "c", "d"])
        self.assertEqual(self.gone, [("b", 2, "expired")])

    def test_expire(self):
        self.cache.put("a", 1)
        self.now += 5
        self.cache.put("b", 2)
        self.now += 5
        self.assertEqual((self.cache.expire(), self.cache.expire()), (1, 0))
        self.assertEqual(self.gone, [("a", 1, "expired")])

    def test_evictions_are_reported_once(self):
        for key in "abcd":
            self.cache.put(key, key)
        self.cache.put("d", "new")
        self.cache.delete("c")
        self.assertEqual(self.gone, [("a", "a", "capacity")])

    def test_deleting_the_dead(self):
        self.cache.put("a", 1)
        self.now += 10
        self.assertIs(self.cache.delete("a"), False)
        self.assertEqual(self.cache.weight, 0)

    def test_for_ever(self):
        cache = Cache(clock=lambda: self.now)
        cache.put("a", 1)
        self.now += 1e9
        self.assertEqual(cache.get("a"), 1)


class StatsTest(unittest.TestCase):
    def test_counts(self):
        cache = Cache(capacity=1)
        cache.get("a")
        cache.put("a", 1)
        cache.get("a")
        cache.get("a")
        cache.put("b", 2)
        self.assertEqual(cache.stats.summary(), {"hits": 2, "misses": 1, "capacity": 1, "expired": 0})
        self.assertAlmostEqual(cache.stats.hit_rate, 2 / 3)

    def test_before_the_first(self):
        self.assertEqual(Cache().stats.hit_rate, 0.0)

    def test_reset(self):
        cache = Cache(capacity=1)
        for key in "abc":
            cache.put(key, 1)
        cache.stats.reset()
        self.assertEqual(cache.stats.summary(), {"hits": 0, "misses": 0, "capacity": 0, "expired": 0})
