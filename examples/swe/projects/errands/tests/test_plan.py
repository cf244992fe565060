import unittest

from errands import CycleError, Plan, UnknownTask


def dinner():
    plan = Plan()
    plan.add("shop", 30)
    plan.add("tidy", 20)
    plan.add("cook", 45, after=["shop"])
    plan.add("bake", 60, after=["shop"])
    plan.add("lay", 10, after=["tidy"])
    plan.add("eat", 40, after=["cook", "bake", "lay"])
    return plan


class BuildingTest(unittest.TestCase):
    def test_names_are_used_once(self):
        plan = dinner()
        with self.assertRaisesRegex(ValueError, "already"):
            plan.add("cook", 5)

    def test_unknown_tasks(self):
        plan = dinner()
        for call in (
            lambda: plan.add("wash", 5, after=["drink"]),
            lambda: plan.wait("drink", "shop"),
            lambda: plan.wait("shop", "drink"),
            lambda: plan.slack("drink"),
            lambda: plan.holds_up("drink"),
        ):
            with self.assertRaises(UnknownTask):
                call()

    def test_a_refused_task_is_not_added(self):
        plan = dinner()
        with self.assertRaises(UnknownTask):
            plan.add("wash", 5, after=["drink"])
        self.assertEqual(plan.order(), ["shop", "tidy", "cook", "bake", "lay", "eat"])

    def test_negative_durations(self):
        with self.assertRaises(ValueError):
            Plan().add("rest", -1)

    def test_waiting_later(self):
        plan = dinner()
        plan.wait("cook", "lay")
        self.assertEqual(plan.order(), ["shop", "tidy", "bake", "lay", "cook", "eat"])

    def test_cycle(self):
        plan = dinner()
        plan.wait("shop", "eat")
        with self.assertRaises(CycleError):
            plan.schedule()


class TimesTest(unittest.TestCase):
    def test_earliest(self):
        self.assertEqual(dinner().earliest(), {"shop": 0, "tidy": 0, "cook": 30, "bake": 30, "lay": 20, "eat": 90})

    def test_latest(self):
        self.assertEqual(dinner().latest(), {"shop": 0, "tidy": 60, "cook": 45, "bake": 30, "lay": 80, "eat": 90})

    def test_latest_of_what_nothing_waits_for(self):
        plan = dinner()
        plan.add("call", 15)
        self.assertEqual(plan.latest()["call"], 115)

    def test_slack(self):
        plan = dinner()
        self.assertEqual([plan.slack(name) for name in ("tidy", "cook", "bake")], [60, 15, 0])

    def test_critical(self):
        self.assertEqual(dinner().critical(), ["shop", "bake", "eat"])

    def test_holds_up(self):
        self.assertEqual(dinner().holds_up("shop"), ["cook", "bake", "eat"])
        self.assertEqual(dinner().holds_up("eat"), [])

    def test_empty_plan(self):
        self.assertEqual((Plan().earliest(), Plan().latest(), Plan().critical()), ({}, {}, []))
        self.assertEqual(Plan().schedule().finish, 0)


class ScheduleTest(unittest.TestCase):
    def test_alone(self):
        schedule = dinner().schedule()
        self.assertEqual(schedule.finish, 205)
        self.assertEqual(schedule.of(0), ["shop", "tidy", "cook", "bake", "lay", "eat"])

    def test_two_workers(self):
        self.assertEqual(
            dinner().schedule(2).rows(),
            [
                ("shop", 0, 0, 30),
                ("tidy", 1, 0, 20),
                ("cook", 0, 30, 75),
                ("bake", 1, 30, 90),
                ("lay", 0, 75, 85),
                ("eat", 0, 90, 130),
            ],
        )

    def test_a_free_worker_waits_for_nobody(self):
        plan = Plan()
        plan.add("a", 10)
        plan.add("b", 3)
        plan.add("c", 4)
        self.assertEqual(plan.schedule(2).rows(), [("a", 0, 0, 10), ("b", 1, 0, 3), ("c", 1, 3, 7)])

    def test_idle(self):
        schedule = dinner().schedule(2)
        self.assertEqual((schedule.idle(0), schedule.idle(1)), (5, 50))

    def test_idle_worker_without_tasks(self):
        plan = Plan()
        plan.add("a", 10)
        self.assertEqual(plan.schedule(3).idle(2), 10)

    def test_busy_at(self):
        schedule = dinner().schedule(2)
        self.assertEqual(
            [schedule.busy_at(time) for time in (0, 20, 30, 86, 129, 130)],
            [["shop", "tidy"], ["shop"], ["cook", "bake"], ["bake"], ["eat"], []],
        )

    def test_no_workers(self):
        with self.assertRaises(ValueError):
            dinner().schedule(0)
