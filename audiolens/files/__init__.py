"""Write files atomically (`atomic`), read them within limits (`bounded`), and hash them (`integrity`)."""
