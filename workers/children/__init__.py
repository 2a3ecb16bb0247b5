"""Programs of ours in processes of their own: started, asked, timed, replaced when they die."""
