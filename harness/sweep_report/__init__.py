"""What a sweep found: leaderboard, importance of each key, a picture, and the best trial as a job.

Everything here reads a sweep's folder; `best_trial` also trains that trial again over seeds.
It may import the modules of `harness` itself and the packages up to `tuning`.
"""
