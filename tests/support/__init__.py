"""What tests share: commands in processes of their own, faults, run folders and engines."""
