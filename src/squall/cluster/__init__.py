"""The processes of one job: where each stands, how they find each other, and whose end ends them.

`squall.cluster.place` reads the environment, `squall.cluster.lifeline` ties a rank to its launcher (both without
torch), `squall.cluster.world` connects the ranks.
"""
