"""What a generator is asked for at test time: tasks as losses of images, one file each."""
