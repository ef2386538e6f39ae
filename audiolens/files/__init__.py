"""Files: written atomically (`atomic`), read within limits (`bounded`), and hashed (`integrity`)."""
