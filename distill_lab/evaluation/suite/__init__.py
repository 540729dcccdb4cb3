"""Standard benchmarks: the tasks of lm-evaluation-harness, answered by the lab's models and engines. See docs/suites.md."""
