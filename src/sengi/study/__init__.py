"""Many runs, one question: space, executors, early termination, replay."""
